"""`expunge qualify`: whether methods are any good on the home's data, before anybody asks to be erased."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from service.commands.environment import Settings
from service.commands.screen import console, progress_bar, tell_of_priority

if TYPE_CHECKING:
    from audit.qualification import ProbeFigures
    from service.context import Context
    from service.studies.lots import Asked, Lot
    from service.studies.qualification import Prepared, Result


def qualify(
    methods: Annotated[
        list[str],
        typer.Argument(help="Methods to qualify; an unknown one is answered with the list.", metavar="METHOD…"),
    ],
    *,
    probes: Annotated[int, typer.Option(help="Probe subjects drawn by lot.")] = 8,
    models: Annotated[int, typer.Option(help="Retrained models, and runs of each method, on each probe subject.")] = 23,
    canaries: Annotated[
        int, typer.Option(help="Subjects planted to see whether the audit sees them; 0: no such test.")
    ] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Run methods many times on subjects drawn by lot, and sign what came of it.

    The lot is logged before any model is made. A command that was stopped goes on with the same lot; asked again after
    a result, it draws another one, and the record says which number it has. The exit status is 1 if a method does not
    qualify.
    """
    from audit.policy import load_policy
    from service.context import Context
    from service.studies.lots import Asked

    context = Context.open(Settings())
    asked = Asked(
        tuple(methods), load_policy(context.settings.policy), n_probes=probes, n_references=models, n_runs=models,
        n_canaries=canaries,
    )  # fmt: skip
    say = _silent if as_json else _say
    say(
        f"At most {asked.most_trainings:.0f} trainings' worth: {probes} probe subjects, {models} retrained models of "
        f"each, {models} runs of each method on each{_planted(canaries)}; by the bars of the policy "
        f"{asked.policy.name}."
    )
    if asked.reading_oracles:
        say(f"The oracles that {', '.join(asked.reading_oracles)} reads come on top of it.")
    if not as_json:
        tell_of_priority(context.settings)
    results, files = qualify_methods(context, asked, quiet=as_json)
    if as_json:
        print(json.dumps([_plain(*pair) for pair in zip(results, files, strict=True)], indent=2, ensure_ascii=False))
    raise typer.Exit(0 if all(result.qualification.qualified for result in results) else 1)


def _planted(n: int) -> str:
    return f", {n} canaries" if n else ""


def qualify_methods(context: Context, asked: Asked, *, quiet: bool = False) -> tuple[list[Result], list[Path]]:
    """Draw the lots or take them up again, make what is missing with a bar, and show the results; with their files."""
    from service.studies.qualification import prepare
    from service.studies.qualification import qualify as run
    from service.training.jobs import release_processes

    say = _silent if quiet else _say
    prepared = prepare(context, asked)
    for lot in prepared.lots:
        say(_about(lot, prepared))
    say(prepared.price.sentence())
    with progress_bar() as bar:
        bar.disable = quiet
        tasks = {}

        def on_step(doing: str, done: int, wanted: int) -> None:
            if doing not in tasks:
                tasks[doing] = bar.add_task(doing, total=wanted)
            bar.update(tasks[doing], completed=done, total=wanted)

        results = run(context, prepared, on_step=on_step)
    release_processes()
    files = [_write(result, context.settings) for result in results]
    if not quiet:
        for result, file in zip(results, files, strict=True):
            _show(result, file)
    return results, files


def _about(lot: Lot, prepared: Prepared) -> str:
    how = "drawn now" if lot.is_new else "taken up again, for it has no result yet"
    n, more = len(lot.people), ""
    if (n_left_out := lot.n_subjects - lot.n_drawn_from) > 0:
        more = f" Left out because settings were tuned on them: {n_left_out} of {lot.n_subjects}."
    if n < prepared.asked.n_probes:
        more += f" There are no more than {n} subjects to draw from."
    return (
        f"{lot.method}: lot number {lot.number} for this method and these data, {how}: {n} of {lot.n_drawn_from} "
        f"subjects.{more}"
    )


def _show(result: Result, file: Path) -> None:
    from audit.proof.qualification import remarks
    from audit.proof.statement import json_ready
    from audit.report.wording import number

    found = result.qualification
    table = Table(
        "probe",
        "d′",
        "F/F_null",
        "worst view",
        "p",
        "gate",
        "back",
        "shift",
        "retain",
        "test",
        "cost",
        "pass",
        title=result.lot.method,
    )
    for place, probe in enumerate(found.probes, 1):
        figures, passed = probe.figures, "yes" if probe.passed else "no"
        if figures is None:
            table.add_row(str(place), *["–"] * 10, "no")
            continue
        learned = "–" if figures.learned is None else number(figures.learned.value, digits=1)
        table.add_row(
            str(place), learned, number(figures.forgetting_ratio.value, digits=2),
            number(figures.smallest_view_ratio, digits=2), number(figures.detection_p),
            _percent(figures.rejected.share.value), _back(figures), number(figures.largest_view_shift, digits=1),
            number(figures.retain_ratio.value), number(figures.test_ratio.value), _percent(figures.cost_share), passed,
        )  # fmt: skip
    console.print(table)
    _say(
        "d′: how much had been learned; worst view: F/F_null there; p: of telling runs from retrained models; gate: "
        "runs that it rejects; back: runs that come back faster than retrained models when half of the images is "
        "learned again; shift: the largest of a view, in standard deviations of retrained models; cost: a run's share "
        "of a training."
    )
    _show_looks(result)
    for sentence in (*remarks(json_ready({"probes": found.probes, "canaries": found.canaries})), *found.reasons):
        _say(sentence)
    _say(f"{result.lot.method} is {'' if found.qualified else 'NOT '}qualified. {found.statement}")
    _say(f"Signed record, entry {result.log_index} of the log: {file}")


def _show_looks(result: Result) -> None:
    """Features and retained subjects, which have no bar."""
    from audit.report.wording import number

    table = Table(
        "probe", "told apart", "p", "shift", "nothing done", "exposing", "most", "largest t",
        title=f"{result.lot.method}: features, and retained subjects",
    )  # fmt: skip
    for place, probe in enumerate(result.qualification.probes, 1):
        figures = probe.figures
        features, exposed = (None, None) if figures is None else (figures.features, figures.exposed)
        of_features = ["not measured", "–", "–", "–"] if features is None else [
            _percent(features.share.value), number(features.detection_p), number(features.shift, digits=1),
            "–" if features.nothing_done is None else number(features.nothing_done, digits=1),
        ]  # fmt: skip
        of_others = ["not measured", "–", "–"] if exposed is None else [
            _percent(exposed.share), str(max(exposed.n_more_exposed)), number(exposed.largest_t, digits=1)
        ]  # fmt: skip
        table.add_row(str(place), *of_features, *of_others)
    console.print(table)
    _say(
        "told apart: runs that features tell from retrained models at α = .05; p: of all runs together; shift: their "
        "mean, and nothing done: the original's place, in standard deviations of retrained models; exposing: runs "
        "under which a retained subject is more exposed; most: such subjects in one run. None of these has a bar."
    )


def _write(result: Result, settings: Settings) -> Path:
    """The record as a file to hand on; it names nobody."""
    from unlearning import files

    folder = settings.reports_folder / "qualifications"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{result.lot.method}-{result.log_index}.json"
    content = (json.dumps(result.record, indent=2, ensure_ascii=False) + "\n").encode()
    files.place(file, content, is_whole=lambda there: there == content)
    return file


def _plain(result: Result, file: Path) -> dict[str, Any]:
    from audit.proof.statement import json_ready

    found = result.qualification
    plain: dict[str, Any] = json_ready({
        "method": result.lot.method,
        "qualified": found.qualified,
        "statement": found.statement,
        "reasons": found.reasons,
        "share": found.share,
        "lot_number": result.lot.number,
        "log_index": result.log_index,
        "record": str(file),
        "probes": found.probes,
        "canaries": found.canaries,
    })  # fmt: skip
    return plain


def _back(figures: ProbeFigures) -> str:
    found = figures.relearning
    return "–" if found is None else _percent(found.told_apart.value)


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _silent(text: str) -> None:
    """Nothing: with --json only the JSON is printed."""
