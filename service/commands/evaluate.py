"""`expunge evaluate`: methods side by side on the home's data.

Tested in `tests/service/studies/test_experiments.py`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from service.commands.environment import Settings
from service.commands.screen import console, progress_bar, tell_of_priority


class SetupName(StrEnum):
    """How the banks of an evaluation are drawn."""

    REUSE_N_1 = "reuse-n-1"
    REUSE_N_N = "reuse-n-n"
    FULL = "full"


def evaluate(
    methods: Annotated[
        list[str],
        typer.Argument(help="Methods to compare; an unknown one is answered with the list.", metavar="METHOD…"),
    ],
    *,
    person: Annotated[list[str], typer.Option(help="User id to forget; several are forgotten together.")],
    setup: Annotated[
        SetupName, typer.Option(help="One original for all runs, one for each run, or fresh models an experiment.")
    ] = SetupName.REUSE_N_1,
    n_models: Annotated[int, typer.Option(min=8, help="Models of a kind in a bank.")] = 64,
    experiments: Annotated[int, typer.Option(min=2, help="Experiments; `full` trains all models for each.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder for evaluation.html and evaluation.json.")] = Path("evaluation"),
) -> None:
    """Compare unlearning methods on the home's data, beside exact retraining and doing nothing.

    Models drawn are kept as margins in the home, so an evaluation that was stopped goes on where it was.
    """
    from audit.report.wording import number
    from audit.studies.comparison import write
    from service.context import Context
    from service.studies.experiments import Experiment, workload
    from service.studies.experiments import evaluate as run_evaluation
    from service.studies.forget_setup import set_stage
    from service.training.jobs import release_processes

    context = Context.open(Settings())
    kind: Any = setup.value.replace("-", "_")
    experiment = Experiment(tuple(methods), tuple(person), kind, n_models=n_models, n_experiments=experiments)
    console.print(workload(context, experiment, set_stage(context, experiment.people)).sentence())
    tell_of_priority(context.settings)
    with progress_bar() as bar:
        drawing, judging = bar.add_task("models", total=None), bar.add_task("figures", total=None)
        comparison = run_evaluation(
            context, experiment,
            on_progress=lambda done, wanted: bar.update(drawing, completed=done, total=wanted),
            on_method=lambda done, wanted: bar.update(judging, completed=done, total=wanted),
        )  # fmt: skip
    release_processes()
    page, _ = write(comparison, out)
    table = Table("method", "score", "F / F_null", "retain", "test", "rejected", "cost")
    for row in comparison.rows:
        table.add_row(
            row.name, number(row.experiments.score.value), number(row.ratio.value, digits=2),
            number(row.experiments.retain_ratio.value), number(row.experiments.test_ratio.value),
            number(row.rejected.value, percent=True), number(row.cost_share, percent=True),
        )  # fmt: skip
    console.print(table)
    console.print(f"Intervals and how to read them: {page}")
