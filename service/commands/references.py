"""`expunge references …`: banks of models trained without a block of subjects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from service.commands.screen import console, progress_bar, tell_of_priority
from service.errors import StartupError
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from rich.progress import TaskID

    from audit.policy import Policy
    from service.banks.build import BankPlan, OnProgress
    from service.banks.store import BankStore
    from service.context import Context
    from unlearning.recipes import Recipe

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
    from service.banks import replica
    from service.banks.refresh import publish, survey
    from service.banks.store import BankStore
    from service.context import Context
    from service.training.answers import require_good_model_in_service
    from service.training.data import recipe_of

    context = Context.open(Settings())
    require_good_model_in_service(context)
    settings, policy = context.settings, load_policy(context.settings.policy)
    store, parts = BankStore(settings.banks_folder), _parts(context, policy, subjects)
    console.print(price_of(store, recipe_of(context), sum(part.n_lacking for part in parts), now=context.now()))
    tell_of_priority(settings)
    with progress_bar() as bar:

        def show(task: TaskID, done: int, _: int) -> None:
            bar.update(task, completed=done)

        for part in parts:
            part.build(partial(show, bar.add_task(part.title, total=part.n_wanted)))
    replica.publish(context)
    publish(context, survey(context, policy))
    for part in parts:
        console.print(f"{part.title}: {part.n_wanted} models, in {part.folder}")


@dataclass(frozen=True)
class _Part:
    """One kind of models that `references build` trains."""

    title: str
    n_wanted: int
    n_lacking: int
    folder: Path
    build: Callable[[OnProgress], None]


def _parts(context: Context, policy: Policy, subjects: list[str] | None) -> list[_Part]:
    """What is to be there for some subjects, or for all of the training split.

    Raises:
        StartupError: a user id of nobody who is trained on.
    """
    from service.banks import spares
    from service.banks.build import build_bank, plan_bank
    from service.banks.oracles import FIRST_SEED as FIRST_ORACLE
    from service.banks.oracles import n_asked_for, oracle_plan
    from service.banks.originals import FIRST_SEED as FIRST_ORIGINAL
    from service.banks.originals import N_ORIGINALS, originals_plan
    from service.banks.refresh import survey
    from service.banks.store import BankStore
    from service.training.data import asked_to_go, images_in_service, recipe_of
    from service.training.spec import open_images

    settings, recipe = context.settings, recipe_of(context)
    images, store = images_in_service(context, recipe), BankStore(settings.banks_folder)
    faces = open_images(images)
    absent = asked_to_go(context, faces)
    known = tuple(subject for subject in faces.train_subjects() if subject not in absent)
    if unknown := [subject for subject in subjects or [] if subject not in known]:
        raise StartupError(f"Expected people of the training split, got {len(unknown)} others among the arguments.")
    plans = {}
    for subject in subjects or known:
        plan = plan_bank(context, recipe, images, forget={subject}, absent=absent, n_models=policy.n_models)
        plans[plan.key.digest] = plan

    def banks(title: str, of: Iterable[BankPlan], n_models: int, first_seed: int = 0) -> _Part:
        of = list(of)

        def build(on_progress: OnProgress) -> None:
            for i, plan in enumerate(of):
                told = partial(_further, on_progress, i * n_models)
                build_bank(store, plan, n_models, settings, told, now=context.now(), first_seed=first_seed)

        lacking = sum(len(store.missing_seeds(plan.key, n_models, first=first_seed)) for plan in of)
        return _Part(title, len(of) * n_models, lacking, settings.banks_folder, build)

    count = "1 bank" if len(plans) == 1 else f"{len(plans)} banks"
    parts = [banks(f"reference models, {count}", plans.values(), policy.n_models)]
    if not subjects:
        everybody = originals_plan(context, recipe, images, absent)
        parts.append(banks("originals, trained with everybody", [everybody], N_ORIGINALS, FIRST_ORIGINAL))
    if n_oracles := n_asked_for(settings, policy):
        parts.append(banks(f"oracles, {count}", map(oracle_plan, plans.values()), n_oracles, FIRST_ORACLE))
    if policy.reads_spares:
        asked = {context.keyring.block_hash(subject) for subject in subjects or known}
        blocks = [block.plan for block in survey(context, policy) if not asked.isdisjoint(block.plan.tags)]
        lacking = len(spares.lacking(context, recipe, blocks))
        train = partial(_train_spares, context, blocks)
        parts.append(_Part("spares, one for each block", len(blocks), lacking, settings.models_folder, train))
    return parts


def _further(on_progress: OnProgress, before: int, done: int, wanted: int) -> None:
    on_progress(before + done, wanted)


def _train_spares(context: Context, blocks: list[BankPlan], on_progress: OnProgress) -> None:
    from service.banks.spares import train_spares
    from service.training.data import recipe_of

    train_spares(context, recipe_of(context), blocks, on_progress)


def price_of(store: BankStore, recipe: Recipe, n_trainings: int, *, now: datetime) -> str:
    """What so many trainings cost, before they begin; with the time if models of the recipe were trained before."""
    trainings = "1 model to train" if n_trainings == 1 else f"{n_trainings} models to train"
    known = [bank for bank in store.status(now=now) if bank.key.recipe_digest == recipe.digest and bank.n_models]
    if not known or not n_trainings:
        return f"{trainings}."
    seconds = n_trainings * sum(bank.cost_seconds for bank in known) / sum(bank.n_models for bank in known)
    time = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    return f"{trainings}, about {time} of one core."


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
