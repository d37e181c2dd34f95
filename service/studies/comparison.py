"""All methods over several forget sets under both reuse setups: the one table of `expunge compare`.

Banks are those of `expunge evaluate`, in the same stores, so what one drew the other finds. They grow in rounds, 16
models of a kind, 32, 64, …: whoever stops the command has a complete smaller table, and gets it by asking for that
many models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from audit.studies.experiments import Setup
from audit.studies.table import Cell, Study
from service.context import Context
from service.studies.experiments import Experiment, OnProgress, draw_references, draw_together, evaluate
from service.studies.forget_setup import Stage, Task, set_stage
from service.training.spec import intact

SETUPS: tuple[Setup, ...] = ("reuse_n_1", "reuse_n_n")
FIRST_ROUND = 16

OnStep = Callable[[str, int, int], None]
"""Called with (what is being done, models or cells done, models or cells wanted)."""


@dataclass(frozen=True)
class Field:
    """Forget sets of one home.

    Attributes:
        forget_sets: user ids by the name the table gives them.
    """

    context: Context
    forget_sets: dict[str, tuple[str, ...]]


def study(
    fields: Sequence[Field],
    methods: Sequence[str],
    *,
    n_models: int,
    n_experiments: int,
    setups: Sequence[Setup] = SETUPS,
    fewer: Mapping[Setup, int] | None = None,
    on_step: OnStep = lambda doing, done, wanted: None,
) -> Study:
    """Draw what is missing and judge every method in every cell.

    A method that diverges on a forget set is left out of that cell, which says so.

    Args:
        fewer: of setups that are to have fewer models than `n_models`, how many.

    Raises:
        DataChangedError: somebody was erased from a field's data meanwhile.
    """
    wanted = {setup: min(n_models, (fewer or {}).get(setup, n_models)) for setup in setups}
    failed: dict[tuple[str, Setup], dict[str, str]] = {}
    shape = _Shape(tuple(methods), n_experiments)
    for size in rounds(max(wanted.values())):
        for field in fields:
            staged = {name: set_stage(field.context, people) for name, people in field.forget_sets.items()}
            with intact(next(iter(staged.values())).plan.spec.images):
                for name, stage in staged.items():
                    report = _named(f"{name}: retrained models, up to {size}", on_step)
                    draw_references(field.context, stage, 2 * size, report)
                for setup in setups:
                    names = {stage: name for name, stage in staged.items()}

                    def note(task: Task, reason: str, setup: Setup = setup, names: dict[Stage, str] = names) -> None:
                        failed.setdefault((names[task.stage], setup), {})[task.method] = reason

                    asked = [
                        (
                            shape.experiment(people, setup, min(size, wanted[setup]), failed.get((name, setup), {})),
                            staged[name],
                        )
                        for name, people in field.forget_sets.items()
                    ]
                    report = _named(f"{' '.join(staged)}: {setup}, up to {size}", on_step)
                    draw_together(field.context, asked, report, on_failure=note)
    cells: list[Cell] = []
    places = [(field, name, setup) for setup in setups for field in fields for name in field.forget_sets]
    for field, name, setup in places:
        on_step("figures", len(cells), len(places))
        lost = failed.get((name, setup), {})
        asked_here = shape.experiment(field.forget_sets[name], setup, wanted[setup], lost)
        cells.append(Cell(name, evaluate(field.context, asked_here), lost))
    on_step("figures", len(cells), len(places))
    return Study(tuple(cells))


@dataclass(frozen=True)
class _Shape:
    """What all cells have in common."""

    methods: tuple[str, ...]
    n_experiments: int

    def experiment(self, people: tuple[str, ...], setup: Setup, n_models: int, failed: Mapping[str, str]) -> Experiment:
        kept = tuple(method for method in self.methods if method not in failed)
        return Experiment(kept, people, setup, n_models=n_models, n_experiments=self.n_experiments)


def rounds(n_models: int) -> Iterator[int]:
    """Sizes that double up to the one asked for."""
    size = FIRST_ROUND
    while size < n_models:
        yield size
        size *= 2
    yield n_models


def _named(doing: str, on_step: OnStep) -> OnProgress:
    return lambda done, wanted: on_step(doing, done, wanted)
