"""Settings that our own search found for our own recipes, kept as data beside the record of how they were found.

`tuned.json` maps a recipe's name to its digest and, by method, to `settings` (only what differs from the authors'
values) and `record` (who was forgotten while tuning, how many models, what came out). A recipe whose digest differs
from the recorded one is another recipe: its methods run with the authors' values. Instead of `methods` a recipe
may have `settings_of`, the name of another whose settings it takes over untuned.
"""

import functools
import json
from pathlib import Path
from typing import Any

from unlearning.methods.settings import S
from unlearning.recipes import Recipe

_FILE = Path(__file__).with_name("tuned.json")


def tuned_settings(method: str, settings: type[S], recipe: Recipe) -> S:
    """Gives a method's settings for a recipe: found by search where there are any, else the authors'."""
    found = tuned_record(method, recipe)
    options = found["settings"] if found else {}
    return settings.from_dict({**options, "recipe": recipe})


def tuned_record(method: str, recipe: Recipe) -> dict[str, Any] | None:
    """Gives `{"settings": …, "record": …}` of a method for a recipe, or None if it was never tuned for it."""
    tables = _tables()
    for name, entry in tables.items():
        if entry["recipe_digest"] == recipe.digest:
            return tables[entry.get("settings_of", name)]["methods"].get(method)
    return None


@functools.cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return tables
