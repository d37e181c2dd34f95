"""`expunge prepare`: from a checked data folder to a policy to start with, in one command that can be stopped."""

from __future__ import annotations

import fcntl
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from service.commands.data import check_data, say_unnamed
from service.commands.environment import Settings
from service.commands.methods import search_settings
from service.commands.qualify import qualify_methods
from service.commands.references import (
    Kind,
    blocks_with_spares,
    build_ahead,
    kinds_ahead,
    minutes,
    seconds_of_training,
)
from service.commands.screen import console, progress_bar, tell_of_priority
from service.commands.training import train_and_show
from service.errors import ConflictError, InvalidInputError

if TYPE_CHECKING:
    from service.banks.build import BankPlan
    from service.context import Context
    from service.studies.ladders import Measured
    from service.studies.preparation import Asked, Facts, Plan


class Part(StrEnum):
    """Parts that can be left out."""

    REFERENCES = "references"
    SPARES = "spares"
    TUNE = "tune"
    QUALIFY = "qualify"


def prepare(
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            help="Methods to tune and qualify; none: those of the policy's ladder, if they can pay.",
            metavar="[METHOD]…",
        ),
    ] = None,
    *,
    without: Annotated[
        list[Part] | None, typer.Option(help="A part to leave out; without qualify nothing is tuned either.")
    ] = None,
    most_trainings: Annotated[
        int | None,
        typer.Option(min=1, help="What everything may cost, in trainings; what does not fit is left out."),
    ] = None,
    probes: Annotated[int, typer.Option(help="Probe subjects of the qualification.")] = 8,
    models: Annotated[int, typer.Option(help="Retrained models, and runs of each method, on each probe subject.")] = 23,
    canaries: Annotated[int, typer.Option(help="Planted subjects of the qualification; 0: none.")] = 4,
    trials: Annotated[int, typer.Option(min=1, help="Settings tried for each method.")] = 8,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the price is paid.")] = False,
) -> None:
    """Check the data, train the model, its references and spares, tune and qualify methods, and recommend a policy.

    It says the price before it is paid, in trainings and minutes, and asks. A command that was stopped, or killed,
    goes on where it was if it is given again.
    """
    from audit.policy import load_policy
    from service.context import Context
    from service.studies.preparation import Asked
    from service.studies.tuning import require_optuna
    from service.training.jobs import release_processes

    settings = Settings()
    asked = Asked(
        load_policy(settings.policy), tuple(dict.fromkeys(methods or ())), n_probes=probes, n_models=models,
        n_trials=trials, most_trainings=most_trainings, without=frozenset(part.value for part in without or ()),
        n_canaries=canaries,
    )  # fmt: skip
    if asked.tunes:
        require_optuna()
    if not yes and not sys.stdin.isatty():
        raise InvalidInputError("Expected a terminal to ask whether the price is to be paid, or the option --yes.")
    context = Context.open(settings)
    with _alone(settings.home):
        _prepare(context, asked, ask=not yes)
    release_processes()


def _prepare(context: Context, asked: Asked, *, ask: bool) -> None:
    from audit.policy import RETRAIN
    from service.banks.qualifications import count_subjects
    from service.studies.ladders import policy_of
    from service.studies.preparation import Facts, decide, oracles_of

    _, sentence = check_data(context)
    _say(sentence)
    measured_before = _have_a_model(context)
    kinds = kinds_ahead(context, replace(asked.policy, ladder=(RETRAIN,)))
    context = _with_tuned(context)
    facts = Facts(
        n_subjects=count_subjects(context),
        n_references=sum(kind.n_wanted for kind in kinds),
        n_blocks=len(kinds[0].plans),
        oracles=oracles_of(context, asked.candidates),
    )
    plan = decide(asked, facts)
    kept = policy_of(asked.policy, (asked.spare_rung, RETRAIN) if plan.spares else (RETRAIN,))
    blocks = blocks_with_spares(context, kept)
    seconds = _pay(context, asked, facts, plan, kinds, blocks, measured_before, ask=ask)
    if plan.references and _n_missing(context, kinds) + _n_lacking(context, blocks):
        build_ahead(context, kept, kinds, blocks)
    failed = _tune(context, asked, facts, plan)
    context = _with_tuned(context)
    measured = _qualify(context, asked, facts, plan, failed)
    _recommend(context, asked, plan, measured, (*plan.reasons, *failed.values()), seconds)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """The only preparation of a home; the kernel's lock ends with the process."""
    with (home / "prepare.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                "Expected no other `expunge prepare` on this home, but one is at work; wait for its end, or stop it."
            ) from None
        yield


def _have_a_model(context: Context) -> float | None:
    """Train one if there is none, and give the seconds it took; say what is wrong with the one there is."""
    from service.models import deployment, registry
    from service.training.answers import shortcoming_in_service
    from service.training.data import recipe_of

    pointer, recipe = deployment.pointer(context), recipe_of(context)
    if pointer is None or not pointer.committed_generation:
        _say(f"No model yet: training one by the recipe {recipe.name}. From it follows what everything else costs.")
        return train_and_show(context)
    digest = pointer.committed_digest
    if registry.get(context, digest).manifest["recipe_digest"] != recipe.digest:
        raise ConflictError(
            f"Expected the model in service to be of the recipe {recipe.name}, but it is of another one, which "
            "references of this recipe cannot judge; run `expunge train`, or set EXPUNGE_RECIPE to the model's recipe."
        )
    _say(f"The model is there: generation {pointer.committed_generation}, model version {digest[:16]}….")
    if said := shortcoming_in_service(context):
        console.print(f"Warning: {said}", style="bold yellow", markup=False, soft_wrap=True)
    say_unnamed(context.settings.data_folder, _say)
    return None


def _with_tuned(context: Context) -> Context:
    """With the settings found so far in force."""
    from service.studies.preparation import tuned_file

    if not (file := tuned_file(context)).exists():
        return context
    return replace(context, settings=context.settings.model_copy(update={"tuned": file}))


def _n_missing(context: Context, kinds: list[Kind]) -> int:
    from service.banks.store import BankStore

    store = BankStore(context.settings.banks_folder)
    return sum(kind.n_missing(store) for kind in kinds)


def _n_lacking(context: Context, blocks: list[BankPlan]) -> int:
    """Spares that are not there yet."""
    from service.banks.spares import lacking
    from service.training.data import recipe_of

    return len(lacking(context, recipe_of(context), blocks))


def _pay(  # noqa: PLR0917
    context: Context, asked: Asked, facts: Facts, plan: Plan, kinds: list[Kind], blocks: list[BankPlan],
    measured_before: float | None, *, ask: bool,
) -> float | None:  # fmt: skip
    """Say what is to be done and what it costs, and ask; gives the seconds of a training, if one was made."""
    whole = _show_parts(context, asked, facts, plan, kinds, blocks)
    seconds = seconds_of_training(context) or measured_before
    if not whole:
        _say("Everything is there already.")
        return seconds
    if seconds is None:
        _train_one(context, kinds)
        seconds = seconds_of_training(context)
    _say(f"To do: at most {whole:.0f} trainings' worth{_time(context, whole, seconds)}.")
    if plan.spares:
        _say(_renewal(context, plan, seconds))
    if plan.methods:
        for_methods = plan.searches + plan.qualifications
        _say(
            f"Methods, up to {for_methods:.0f} trainings, are paid for once. They save less than 1 training an "
            f"erasure, so they pay after more than {for_methods:.0f} erasures, or where a training takes longer than "
            "an erasure may. --without qualify leaves them out."
        )
    tell_of_priority(context.settings)
    if ask and not typer.confirm("Go on?", default=True):
        _say("Stopped. What is there already stays.")
        raise typer.Exit(1)
    return seconds


def _renewal(context: Context, plan: Plan, seconds: float | None) -> str:
    """What spares cost again and again."""
    return (
        "With spares an erasure has next to nothing to train at the request. They are paid for again afterwards: after "
        f"each run, however many requests it holds, the idle worker trains about {plan.spares} anew"
        f"{_time(context, plan.spares, seconds)}. --without spares leaves them out."
    )


def _show_parts(  # noqa: PLR0917
    context: Context, asked: Asked, facts: Facts, plan: Plan, kinds: list[Kind], blocks: list[BankPlan]
) -> float:
    """What each part costs at most, and why others are left out; gives the trainings that are still to do."""
    from service.studies.ladders import to_qualify, to_tune
    from service.studies.preparation import qualification_price, search_price

    n_missing = _n_missing(context, kinds) if plan.references else 0
    n_lacking = _n_lacking(context, blocks)
    searches = search_price(asked, facts, to_tune(context, asked, facts, plan))
    qualifications = qualification_price(asked, facts, to_qualify(context, asked, facts, plan))
    table = Table("part", "trainings, at most", "still to do")
    for shown, part, at_most, left in (
        (plan.references, "references", plan.references, n_missing),
        (plan.spares, "spares", plan.spares, n_lacking),
        (plan.tuned, f"settings of {', '.join(plan.tuned)}", plan.searches, searches),
        (plan.methods, f"qualification of {', '.join(plan.methods)}", plan.qualifications, qualifications),
    ):
        if shown:
            table.add_row(part, f"{at_most:.0f}", f"{left:.0f}")
    console.print(table)
    for reason in plan.reasons:
        _say(reason)
    return n_missing + n_lacking + searches + qualifications


def _time(context: Context, trainings: float, seconds: float | None) -> str:
    """In words, of one core and of as many as there are."""
    from service.training.parallel import jobs_of

    if seconds is None:
        return ""
    jobs = jobs_of(context.settings).n
    beside = f", {minutes(trainings * seconds / jobs)} of {jobs}" if jobs > 1 else ""
    return f"; the trainings alone take about {minutes(trainings * seconds)} of one core{beside}"


def _train_one(context: Context, kinds: list[Kind]) -> None:
    """Train the first original, which is wanted anyway, to know what a training takes."""
    from service.banks.store import BankStore

    store, kind = BankStore(context.settings.banks_folder), kinds[-1]
    with progress_bar() as bar:
        task = bar.add_task("one model, to measure by", total=1)
        kind.build(
            store, kind.plans[0], 1, context.settings, lambda done, _: bar.update(task, completed=done),
            now=context.now(),
        )  # fmt: skip


def _tune(context: Context, asked: Asked, facts: Facts, plan: Plan) -> dict[str, str]:
    """Search settings where none were found yet; by method, why none could be found."""
    from service.studies.ladders import to_tune
    from service.studies.preparation import tuned_file, tuning_people
    from unlearning.errors import MethodError

    lost: dict[str, str] = {}
    if not (searched := to_tune(context, asked, facts, plan)):
        return lost
    people = tuning_people(context, plan.tuned, facts.n_tuning)
    _say(f"Settings are searched on {len(people)} subjects, drawn by lot, whom no qualification will draw.")
    command = f"expunge prepare --trials {asked.n_trials} --models {asked.n_models}"
    for method in searched:
        search = asked.search(method, tuple((person,) for person in people))
        try:
            search_settings(context, search, tuned_file(context), own=True, command=command)
        except MethodError as error:
            lost[method] = str(error)
    return lost


def _qualify(context: Context, asked: Asked, facts: Facts, plan: Plan, failed: dict[str, str]) -> list[Measured]:
    """Qualify what has no result yet, and put into `failed` why methods failed; gives the figures of those qualified.

    A candidate that was qualified before counts, also where the plan leaves it out.
    """
    from service.studies.ladders import Measured, standing, to_qualify

    left = [method for method in to_qualify(context, asked, facts, plan) if method not in failed]
    if left:
        qualify_methods(context, asked.qualification(left))
    found = {method: standing(context, asked, facts, method) for method in asked.candidates if method not in failed}
    failed |= {method: said for method, said in found.items() if isinstance(said, str) and method in plan.methods}
    return [each for each in found.values() if isinstance(each, Measured)]


def _recommend(  # noqa: PLR0917
    context: Context, asked: Asked, plan: Plan, measured: list[Measured], reasons: tuple[str, ...],
    seconds: float | None,
) -> None:  # fmt: skip
    from service.studies.ladders import of_spares, policy_of, recommend, write_policy

    ahead = [of_spares(context, asked)] if plan.spares else []
    found, untuned = recommend([*ahead, *measured]), recommend(ahead)
    policy = policy_of(asked.policy, found.ladder)
    file = write_policy(context, policy)
    one = f" ({minutes(seconds)} of one core)" if seconds is not None else ""
    if len(found.ladder) > 1:
        _say(
            f"Recommended: {', then '.join(found.ladder[:-1])}, then exact retraining. An erasure costs about "
            f"{found.trainings:.2f} trainings at the request; by exact retraining alone it costs 1{one}."
        )
        if plan.spares:
            _say(_renewal(context, plan, seconds))
    else:
        _say(f"Recommended: exact retraining alone, 1 training an erasure{one}. No qualified method is cheaper.")
    for each in measured:
        _say(_figures(each))
    for reason in reasons:
        _say(reason)
    _tell_when_it_pays(plan, untuned.trainings - found.trainings)
    _say(f"The policy {policy.name} is in {file}. To start with it:")
    exports = f"export EXPUNGE_POLICY={shlex.quote(str(file.resolve()))}"
    if measured and len(found.ladder) > 1 and context.settings.tuned is not None:
        exports += f" EXPUNGE_TUNED={shlex.quote(str(context.settings.tuned.resolve()))}"
    scopes = " ".join(f"--scope {scope}" for scope in ("predict", "erasure:write", "erasure:read", "audit:read"))
    for line in (exports, f"expunge keys create operator {scopes}", "expunge up"):
        _say(f"  {line}")


def _figures(each: Measured) -> str:
    upkeep = f", its oracles {each.upkeep:.1f} trainings an erasure" if each.upkeep else ""
    said = (
        f"{each.method} is qualified: a run costs {each.cost_share:.2f} of a training{upkeep}, and the gate rejects "
        f"{each.rejected_share:.0%} of the runs."
    )
    if each.worth >= 1:
        said += f" That is no rung of the ladder: to pass once it costs {each.worth:.2f} trainings, exact retraining 1."
    return said


def _tell_when_it_pays(plan: Plan, saved: float) -> None:
    spent = plan.searches + plan.qualifications
    if spent and saved > 0:
        _say(
            f"Tuning and qualification cost up to {spent:.0f} trainings: against the same ladder without methods they "
            f"have paid after about {spent / saved:.0f} erasures."
        )


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
