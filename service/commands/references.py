"""`expunge references …`: banks of models trained without a block of subjects.

Tested in `tests/service/banks/test_refresh.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from service.commands.environment import Settings
from service.commands.screen import console, progress_bar, tell_of_priority
from service.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.progress import TaskID

    from audit.policy import Policy
    from service.banks.build import BankPlan, OnProgress
    from service.banks.store import Bank, BankStore
    from service.context import Context

references_app = typer.Typer(
    no_args_is_help=True, help="Reference banks: margins of models trained without a block of subjects."
)


@references_app.command("build")
def references_build(
    subjects: Annotated[
        list[str] | None, typer.Argument(help="User ids whose banks to build; none: those of all blocks.")
    ] = None,
) -> None:
    """Build reference banks ahead, so that a request need not wait for them.

    Without names also the originals, models trained with everybody, from which an audit reads how much had been
    learned of a subject; oracles and spares, if methods of the policy's ladder read any. Says first what it costs.
    Several of these commands at once share the work.
    """
    from audit.policy import load_policy
    from service.banks import spares
    from service.banks.store import BankStore
    from service.context import Context
    from service.training.data import recipe_of

    context = Context.open(Settings())
    policy = load_policy(context.settings.policy)
    kinds = kinds_ahead(context, policy, subjects or [])
    store = BankStore(context.settings.banks_folder)
    blocks = blocks_with_spares(context, policy, subjects or [])
    n_missing = sum(kind.n_missing(store) for kind in kinds) + len(spares.lacking(context, recipe_of(context), blocks))
    console.print(price_of(n_missing, seconds_of_training(context)))
    tell_of_priority(context.settings)
    build_ahead(context, policy, kinds, blocks)
    for kind in kinds:
        console.print(f"{kind.title}: {kind.n_models} models each, in {context.settings.banks_folder}")
    if blocks:
        console.print(f"spares: one for each of {len(blocks)} blocks, in {context.settings.models_folder}")


@dataclass(frozen=True)
class Kind:
    """Banks of one kind, to be built ahead.

    Attributes:
        title: for the progress bar.
        build: as `service.banks.build.build_bank`.
        n_models: of each bank, with seeds from `first_seed` on.
    """

    title: str
    build: Callable[..., Bank]
    plans: tuple[BankPlan, ...]
    n_models: int
    first_seed: int

    @property
    def n_wanted(self) -> int:
        """Models of all its banks."""
        return len(self.plans) * self.n_models

    def n_missing(self, store: BankStore) -> int:
        """Models that are not there yet."""
        return sum(len(store.missing_seeds(plan.key, self.n_models, first=self.first_seed)) for plan in self.plans)


def kinds_ahead(context: Context, policy: Policy, subjects: Sequence[str] = ()) -> list[Kind]:
    """What is built ahead for a policy: reference banks, originals, oracles if a method of the ladder reads any.

    Args:
        subjects: whose blocks; none: all blocks, and the originals.

    Raises:
        PoorModelError: the model in service answers one class only.
        StartupError: somebody is not of the training split.
    """
    from service.banks.build import build_bank, plan_bank
    from service.banks.oracles import FIRST_SEED as FIRST_ORACLE
    from service.banks.oracles import build_oracles, n_asked_for, oracle_plan
    from service.banks.originals import FIRST_SEED as FIRST_ORIGINAL
    from service.banks.originals import N_ORIGINALS, build_originals, originals_plan
    from service.training.answers import require_good_model_in_service
    from service.training.data import asked_to_go, images_in_service, recipe_of
    from service.training.spec import open_images

    require_good_model_in_service(context)
    recipe = recipe_of(context)
    images = images_in_service(context, recipe)
    faces = open_images(images)
    absent = asked_to_go(context, faces)
    known = tuple(subject for subject in faces.train_subjects() if subject not in absent)
    unknown = [subject for subject in subjects if subject not in known]
    if unknown:
        raise StartupError(f"Expected people of the training split, got {len(unknown)} others among the arguments.")
    plans = {}
    for subject in subjects or known:
        plan = plan_bank(context, recipe, images, forget={subject}, absent=absent, n_models=policy.n_models)
        plans[plan.key.digest] = plan
    banks = "1 bank" if len(plans) == 1 else f"{len(plans)} banks"
    kinds = [Kind(f"reference models, {banks}", build_bank, tuple(plans.values()), policy.n_models, 0)]
    if not subjects:
        everybody = originals_plan(context, recipe, images, absent)
        title = "originals, trained with everybody"
        kinds.append(Kind(title, build_originals, (everybody,), N_ORIGINALS, FIRST_ORIGINAL))
    if n_oracles := n_asked_for(context.settings, policy):
        oracles = tuple(oracle_plan(plan) for plan in plans.values())
        kinds.append(Kind(f"oracles, {banks}", build_oracles, oracles, n_oracles, FIRST_ORACLE))
    return kinds


def blocks_with_spares(context: Context, policy: Policy, subjects: Sequence[str] = ()) -> list[BankPlan]:
    """The exact bank of each block that is to have a spare; none if no method of the ladder reads spares.

    Args:
        subjects: whose blocks; none: all.
    """
    from service.banks.refresh import survey

    if not policy.reads_spares:
        return []
    asked = {context.keyring.block_hash(subject) for subject in subjects}
    plans = [block.plan for block in survey(context, policy)]
    return [plan for plan in plans if not asked or not asked.isdisjoint(plan.tags)]


def build_ahead(context: Context, policy: Policy, kinds: Sequence[Kind], blocks: Sequence[BankPlan] = ()) -> None:
    """Train what is missing, with a bar for each kind, and publish it.

    Args:
        blocks: that are to have a spare, see `blocks_with_spares`.
    """
    from service.banks import replica
    from service.banks.refresh import publish, survey
    from service.banks.spares import train_spares
    from service.banks.store import BankStore
    from service.training.data import recipe_of

    store = BankStore(context.settings.banks_folder)
    with progress_bar() as bar:

        def advance(task: TaskID, before: int, done: int, _: int) -> None:
            bar.update(task, completed=before + done)

        for kind in kinds:
            task = bar.add_task(kind.title, total=kind.n_wanted)
            for i, plan in enumerate(kind.plans):
                told = partial(advance, task, i * kind.n_models)
                kind.build(store, plan, kind.n_models, context.settings, told, now=context.now())
        if blocks:
            task = bar.add_task("spares", total=len(blocks))
            train_spares(context, recipe_of(context), blocks, partial(advance, task, 0))
    replica.publish(context)
    publish(context, survey(context, policy))


def seconds_of_training(context: Context) -> float | None:
    """Processor seconds of one training by the recipe, if any was made for references before."""
    from service.banks.store import BankStore
    from service.training.data import recipe_of

    digest = recipe_of(context).digest
    banks = BankStore(context.settings.banks_folder).status(now=context.now())
    known = [bank for bank in banks if bank.key.recipe_digest == digest and bank.n_models]
    return sum(bank.cost_seconds for bank in known) / sum(bank.n_models for bank in known) if known else None


def price_of(n_trainings: int, training_seconds: float | None) -> str:
    """What so many trainings cost, before they begin; with the time if it is known how long one takes."""
    trainings = "1 model to train" if n_trainings == 1 else f"{n_trainings} models to train"
    if training_seconds is None or not n_trainings:
        return f"{trainings}."
    return f"{trainings}, about {minutes(n_trainings * training_seconds)} of one core."


def minutes(seconds: float) -> str:
    """A time in words: hours, minutes or seconds."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    if seconds >= 90:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.1f} seconds"


@references_app.command("refresh")
def references_refresh(
    everything: Annotated[bool, typer.Option("--all", help="Also blocks that have no bank yet.")] = False,
    child_of: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train anew spares, and banks that erasures made too stale or nearly, as the worker does while no run is open."""
    from audit.policy import load_policy
    from service.banks.refresh import become_child, rebuild
    from service.context import Context

    if child_of is not None:
        become_child(child_of)
    context = Context.open(Settings())
    policy = load_policy(context.settings.policy)
    if child_of is None:
        tell_of_priority(context.settings)
    with progress_bar() as bar:
        task = bar.add_task("looking at the banks", total=None)

        def on_block(block: str, number: int, n_blocks: int) -> OnProgress:
            def told(done: int, wanted: int) -> None:
                text = f"reference models, block {number} of {n_blocks}"
                bar.update(task, description=text, total=wanted, completed=done)

            return told

        n_built = 0
        if child_of is None or context.settings.rebuild_references != "off":
            n_built = rebuild(context, policy, missing_too=everything, on_block=on_block if child_of is None else None)
    if child_of is not None and context.settings.qualify_when_idle:
        _qualify_what_is_due(context, policy)
    if child_of is None:
        console.print(
            f"{n_built} banks were built anew." if n_built else "Every bank may judge, also after one more erasure."
        )


def _qualify_what_is_due(context: Context, policy: Policy) -> None:
    from service.studies.lots import Asked
    from service.studies.qualification import due, prepare, qualify

    if names := due(context, policy):
        qualify(context, prepare(context, Asked(names, policy)))


@references_app.command("validate")
def references_validate(
    people: Annotated[int, typer.Option(min=1, help="People of each data set who are retrained without.")] = 3,
    models: Annotated[int, typer.Option(min=8, help="Models of each bank.")] = 64,
    drawn: Annotated[bool, typer.Option(help="Also on drawn faces, with people who are gone since.")] = True,
    own: Annotated[bool, typer.Option(help="On the service's own people.")] = True,
    folder: Annotated[Path | None, typer.Option(help="Where to write; none: the home's reports.")] = None,
) -> None:
    """Measure how far block and stale banks mislead: audits exact retrains against them.

    Costs many trainings (on the AT&T faces and drawn ones about half an hour of a core); can be killed and goes on.
    """
    from service.context import Context
    from service.studies.block_bias import Sizes, validate_own, validate_synthetic, write_report

    context = Context.open(Settings())
    sizes = Sizes(people, models)
    tell_of_priority(context.settings)
    with progress_bar() as bar:
        task = bar.add_task("validating", total=None)

        def on_bank(what: str, number: int, n_banks: int) -> OnProgress:
            return lambda done, wanted: bar.update(
                task, description=f"{what}, bank {number} of {n_banks}", total=wanted, completed=done
            )

        curves = [validate_own(context, sizes, partial(on_bank, "own people"))] if own else []
        if drawn:
            curves.append(validate_synthetic(context.settings, sizes, partial(on_bank, "drawn faces")))
    for path in write_report(curves, context.settings, folder or context.settings.reports_folder / "references"):
        console.print(str(path))


@references_app.command("status")
def references_status() -> None:
    """List all blocks: the state of the bank, models, age, staleness, size and cost.

    fresh: trained on the present data. stale: people were erased since, within the policy's limit. outdated: beyond
    the limit. building, missing: no usable bank yet.
    """
    from audit.policy import load_policy
    from service.banks.overview import overview
    from service.banks.refresh import publish, survey
    from service.context import Context

    context = Context.open(Settings())
    policy = load_policy(context.settings.policy)
    publish(context, survey(context, policy))
    seen = overview(context)
    table = Table("block", "people", "state", "models", "stale", "size", "training", "age")
    for block in seen.blocks:
        models = f"{block.n_models}/{block.n_wanted}"
        if block.state in ("stale", "outdated") and block.n_next:
            models += f", next {block.n_next}"
        table.add_row(
            block.block, str(block.n_people), block.state, models,
            f"{block.n_gone} of {block.n_learned} ({block.staleness:.1%})" if block.bank and block.n_gone else "–",
            f"{block.size_bytes / 1000:.0f} kB", f"{block.cost_seconds:.0f} s",
            f"{block.age_seconds / 3600:.1f} h" if block.age_seconds is not None else "–",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{len(seen.blocks)} blocks, {seen.n_models} of {seen.n_wanted} models, {seen.size_bytes / 1e6:.1f} MB, "
        f"{seen.cost_seconds / 60:.1f} core-minutes; policy {policy.name}: at most {policy.staleness_max:.0%} of the "
        "people a bank learned from may be gone."
    )
