"""What there is to say about each method in one place: for `expunge methods` and whoever reads its JSON."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from audit.policy import RETRAIN, load_policy
from audit.qualification import Bars
from service.banks.qualifications import Qualified, count_subjects, find_valid
from service.context import Context
from unlearning.methods import METHODS, find_method, settings_for, tuned_record
from unlearning.recipes import Recipe


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        reads: what of the request it reads.
        cost: what it passes through, from its own description.
        cost_share: seconds as a share of retraining's, measured when its settings were tuned; None: never tuned.
        authors: the authors' settings.
        settings: those in force for the recipe.
        tuned_on: recipe they were tuned on; None: the authors'.
    """

    name: str
    title: str
    source: str
    needs_forget: bool
    needs_oracles: bool
    needs_spare: bool
    exact: bool
    cost: str
    cost_share: float | None
    authors: dict[str, Any]
    settings: dict[str, Any]
    tuned_on: str | None

    @property
    def reads(self) -> str:
        """In words."""
        if self.needs_spare:
            return "retain set only, a spare in place of the model"
        if self.exact:
            return "retain set only, not the model"
        if self.needs_oracles:
            return "forget and retain set, oracles’ margins"
        return "forget and retain set" if self.needs_forget else "retain set only"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def describe(name: str, recipe: Recipe, file: Path | None = None) -> Entry:
    """One method's entry; `file` as in `unlearning.methods.settings_for`.

    Raises:
        MethodError: there is none of that name.
    """
    method, found = find_method(name), tuned_record(name, recipe, file)
    return Entry(
        name=name,
        title=method.title,
        source=method.source,
        needs_forget=method.needs_forget,
        needs_oracles=method.needs_oracles,
        needs_spare=method.needs_spare,
        exact=method.exact,
        cost=documented_cost(name),
        cost_share=1.0 if name == RETRAIN else found["record"]["cost_share"] if found else None,
        authors=method.settings().to_dict(),
        settings=settings_for(name, recipe, file).to_dict(),
        tuned_on=recipe.name if found else None,
    )


def entries(recipe: Recipe, file: Path | None = None) -> list[Entry]:
    """All methods, in the registry's order."""
    return [describe(name, recipe, file) for name in METHODS]


def documented_cost(name: str) -> str:
    """The sentence that a method's own description has after "Cost:"."""
    text = sys.modules[find_method(name).function.__module__].__doc__ or ""
    found = re.search(r"^Cost: (.+?)(?=\. [A-Z]|\.$|\.\n\n)", text, flags=re.DOTALL | re.MULTILINE)
    return " ".join(found.group(1).split()) if found else ""


def standings(context: Context, recipe: Recipe, names: Iterable[str]) -> dict[str, Qualified | str]:
    """By method, its valid qualification under the policy in force, or why it has none; exact ones need none.

    Raises:
        FacesError: the data folder's table cannot be read, so that nobody knows how far the data drifted.
    """
    settings, n_subjects = context.settings, count_subjects(context)
    bars = Bars.of(load_policy(settings.policy))
    return {
        name: find_valid(
            context, method=name, options=settings_for(name, recipe, settings.tuned).to_dict(), recipe=recipe,
            n_subjects_now=n_subjects, bars=bars,
        )
        for name in names
        if not find_method(name).exact
    }  # fmt: skip
