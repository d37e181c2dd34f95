"""`expunge methods` and `expunge tune`: which methods there are, and their settings for a recipe.

Tested in `tests/service/studies/test_tuning.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands.environment import Settings
from service.commands.screen import console, progress_bar, tell_of_priority

if TYPE_CHECKING:
    from service.banks.qualifications import Qualified
    from service.context import Context
    from service.studies.tuning import Search
    from unlearning.recipes import Recipe


def methods(
    method: Annotated[str | None, typer.Argument(help="One method, to see its settings.", metavar="[METHOD]")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """List the unlearning methods: whose they are, what they read and cost, their settings, who is qualified."""
    from rich.table import Table

    from service.studies.method_catalog import describe, entries
    from unlearning.recipes import load_recipe

    settings = Settings()
    recipe = load_recipe(settings.recipe)
    listed = [describe(method, recipe, settings.tuned)] if method else entries(recipe, settings.tuned)
    standing = _standings(settings, recipe, [entry.name for entry in listed])
    if as_json:
        plain = [{**entry.to_dict(), "qualification": _plain(standing.get(entry.name))} for entry in listed]
        print(json.dumps(plain, indent=2, ensure_ascii=False))
        return
    if method:
        (entry,) = listed
        console.print(f"{entry.name}: {entry.title}, {entry.source}. {entry.reads}.", markup=False)
        console.print(f"Cost: {entry.cost}.", markup=False)
        if (found := standing.get(entry.name)) is not None:
            for sentence in (_sentence(found), *([] if isinstance(found, str) else found.remarks)):
                console.print(sentence, markup=False, soft_wrap=True)
        table = Table("setting", "authors'", f"in force for {recipe.name}")
        for name, value in entry.authors.items():
            in_force = entry.settings[name]
            table.add_row(name, str(value), str(in_force) if in_force != value else "")
        console.print(table)
        return
    table = Table("method", "source", "reads", "cost / retraining", f"settings for {recipe.name}", "qualified")
    for entry in listed:
        found = standing.get(entry.name)
        if found is None:
            until = "needs none" if entry.exact else "–"
        else:
            until = "no" if isinstance(found, str) else f"until {found.expires_at:%Y-%m-%d}"
        table.add_row(
            entry.name, entry.source, entry.reads, "–" if entry.cost_share is None else f"{entry.cost_share:.0%}",
            "tuned" if entry.tuned_on else "authors'", until,
        )  # fmt: skip
    console.print(table)
    for found in standing.values():
        if isinstance(found, str) and "never qualified" not in found:
            console.print(found, markup=False, soft_wrap=True)
    console.print(
        "Costs are those measured with tuned settings; `expunge methods NAME` says what a method passes through, and "
        "`expunge qualify NAME` measures whether it is any good on this home's data."
    )


def _standings(settings: Settings, recipe: Recipe, names: list[str]) -> dict[str, Qualified | str]:
    """Nothing where the home has no database or no data yet: looking at methods makes neither."""
    from service.context import Context
    from service.studies.method_catalog import standings
    from unlearning.faces.dataset import METADATA

    has_database = bool(settings.database_url) or (settings.home / "expunge.db").exists()
    if not has_database or not (settings.data_folder / METADATA).exists():
        return {}
    return standings(Context.open(settings), recipe, names)


def _sentence(found: Qualified | str) -> str:
    if isinstance(found, str):
        return found
    return f"Qualified until {found.expires_at:%Y-%m-%d}: {found.statement}"


def _plain(found: Qualified | str | None) -> dict[str, Any] | None:
    """For JSON; none where the home has no data or the method is exact."""
    if found is None:
        return None
    until = None if isinstance(found, str) else found.expires_at.isoformat()
    said = [] if isinstance(found, str) else list(found.remarks)
    return {"valid": until is not None, "until": until, "sentence": _sentence(found), "remarks": said}


TuningPeople = Annotated[
    list[str],
    typer.Option(
        help="User id of the home's data to tune on, several with commas are forgotten together; repeat for further "
        "forget sets. None: the tuning people of a public data set.",
        metavar="ID[,ID…]",
    ),
]


def tune(
    method: Annotated[str, typer.Argument(help="Method to tune; an unknown one is answered with the list.")],
    *,
    forget: TuningPeople = [],  # noqa: B006 (typer copies it)
    world: Annotated[str, typer.Option(help="Public data to tune on, where no one is named.")] = "att",
    trials: Annotated[int, typer.Option(min=1, help="Settings tried.")] = 8,
    n_models: Annotated[int, typer.Option(min=4, help="Runs of a trial on each forget set.")] = 32,
    out: Annotated[
        Path | None, typer.Option(help="File of tuned settings to keep the result in; default tuned.json in the home.")
    ] = None,
) -> None:
    """Search a method's settings for a recipe, on people set apart for it.

    Whoever is tuned on must not be reported on. A search that was stopped goes on where it was.
    """
    from service.context import Context
    from service.studies.datasets import WORLDS, open_world
    from service.studies.tuning import Search

    settings = Settings()
    if forget:
        context, sets, where = Context.open(settings), tuple(tuple(ids.split(",")) for ids in forget), ""
    else:
        context = open_world(world, settings)
        sets, where = WORLDS[world].tuning, f" --world {world}"
    search = Search(method, sets, n_trials=trials, n_models=n_models, n_confirm=n_models)
    tell_of_priority(settings)
    command = f"expunge tune {method}{where} --trials {trials} --n-models {n_models}"
    file = out or settings.home / "tuned.json"
    search_settings(context, search, file, own=bool(forget), command=command)
    console.print("The service uses it where EXPUNGE_TUNED names the file.")


def search_settings(context: Context, search: Search, file: Path, *, own: bool, command: str) -> None:
    """Search a method's settings, with a bar, and keep what was found in a file of tuned settings.

    Args:
        own: the subjects are the home's own: they are noted before, so that no lot draws them, and are in no file.
        command: to repeat it, for the record.
    """
    from service.banks.qualifications import note_tuned
    from service.studies.tuning import keep, tune
    from service.training.data import recipe_of
    from service.training.jobs import release_processes

    method, recipe = search.method, recipe_of(context)
    if own:
        note_tuned(context, method, recipe, [person for people in search.forget_sets for person in people])
    with progress_bar() as bar:
        task = bar.add_task(f"{method}: trials", total=search.n_trials)
        found = tune(
            context, search,
            on_trial=lambda done, wanted, best: bar.update(
                task, completed=done, total=wanted, description=f"{method}: best so far {best:.2f}, trials"
            ),
        )  # fmt: skip
    release_processes()
    record = found["record"]
    if not own:
        record["people"] = [list(people) for people in search.forget_sets]
    record["command"] = command
    keep(file, recipe, method, found)
    console.print(
        f"{method}: F / F_null {record['forgetting_ratio']:.2f}, retain {record['retain_ratio']:.3f}, test "
        f"{record['test_ratio']:.3f}, cost {record['cost_share']:.0%} with {json.dumps(found['settings'])}; kept in "
        f"{file}.",
        markup=False, soft_wrap=True,
    )  # fmt: skip
