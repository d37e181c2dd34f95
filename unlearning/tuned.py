"""Settings that a search found for the built-in recipes, stored with the record of the search.

`tuned.json` maps a recipe's name to its digest and, by method, to `settings` (only what differs from the authors'
values) and `record` (forget sets, numbers of models, results). A recipe whose digest differs
from the recorded one counts as another recipe, whose methods run with the authors' values.
"""

import functools
import json
from pathlib import Path
from typing import Any

from unlearning.errors import MethodError
from unlearning.procedures.settings import S
from unlearning.recipes import Recipe

_FILE = Path(__file__).with_name("tuned.json")


def tuned_settings(method: str, settings: type[S], recipe: Recipe, file: Path | None = None) -> S:
    """Returns a method's settings for a recipe: found by search where there are any, else the authors'."""
    found = tuned_record(method, recipe, file)
    options = found["settings"] if found else {}
    return settings.from_dict({**options, "recipe": recipe})


def tuned_record(method: str, recipe: Recipe, file: Path | None = None) -> dict[str, Any] | None:
    """Returns `{"settings": …, "record": …}` of a method for a recipe, or None if it was never tuned for it.

    Args:
        file: one like `tuned.json`, as `expunge tune` writes it; its entries take precedence over those of the package.

    Raises:
        MethodError: the file is not there or not JSON of that form.
    """
    for tables in (_read(file) if file else {}, _tables()):
        for entry in tables.values():
            if entry["recipe_digest"] == recipe.digest:
                found = entry["methods"].get(method)
                if found is not None:
                    return dict(found)
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        tables = json.loads(file.read_text(encoding="utf-8"))
        whole = all("recipe_digest" in entry for entry in tables.values())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise MethodError(f"Expected {file} to be a file that `expunge tune` wrote, but: {error}.") from error
    if not whole:
        raise MethodError(f"Expected every recipe in {file} to have a recipe_digest; write it with `expunge tune`.")
    return dict(tables)


@functools.cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return tables
