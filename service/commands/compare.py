"""`expunge compare`: all methods in one table. Tested in `tests/service/studies/test_comparison.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.environment import Settings
from service.commands.screen import console, progress_bar, tell_of_priority


def compare(
    methods: Annotated[
        list[str] | None, typer.Argument(help="Methods to compare; none: all.", metavar="[METHOD…]")
    ] = None,
    *,
    forget: Annotated[
        list[str],
        typer.Option(
            help="User id of the home's data to forget, several with commas are forgotten together; repeat for further "
            "forget sets. None: the reported people of the public data sets.",
            metavar="ID[,ID…]",
        ),
    ] = [],  # noqa: B006 (typer copies it)
    world: Annotated[list[str], typer.Option(help="Public data, where no one is named; repeat for several.")] = [  # noqa: B006
        "att",
        "synthetic",
    ],
    n_models: Annotated[int, typer.Option(min=8, help="Models of a kind in a bank.")] = 128,
    n_n_models: Annotated[
        int | None, typer.Option(min=8, help="The same for Reuse-N-N, if fewer: every run there has another original.")
    ] = None,
    experiments: Annotated[int, typer.Option(min=2, help="Experiments drawn from each bank.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder for comparison.md, .json and the drawings.")] = Path("comparison"),
) -> None:
    """Compare all methods over several forget sets, from one original and from one each; one table.

    Models drawn are kept as margins, so a comparison that was stopped goes on where it was, and can be had at the size
    it had reached by a smaller `--n-models`.
    """
    from audit.studies.table import markdown, write
    from service.context import Context
    from service.studies.comparison import Field, study
    from service.studies.datasets import WORLDS, open_world
    from service.training.jobs import release_processes
    from unlearning.methods import METHODS

    settings = Settings()
    if forget:
        sets = {f"forget set {number}": tuple(ids.split(",")) for number, ids in enumerate(forget, 1)}
        fields = [Field(Context.open(settings), sets)]
    else:
        fields = [Field(open_world(name, settings), dict(WORLDS[name].reported)) for name in world]
    tell_of_priority(settings)
    with progress_bar() as bar:
        task = bar.add_task("models", total=None)
        done = study(
            fields, methods or [name for name, method in METHODS.items() if not method.exact], n_models=n_models,
            n_experiments=experiments, fewer={"reuse_n_n": n_n_models} if n_n_models else {},
            on_step=lambda doing, n, wanted: bar.update(task, description=doing, completed=n, total=wanted),
        )  # fmt: skip
    release_processes()
    paths = write(done, out)
    print(markdown(done))
    console.print("Written: " + ", ".join(str(path) for path in paths), soft_wrap=True)
