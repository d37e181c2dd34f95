"""`expunge references …`: banks of models trained without a block of subjects."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from service.commands.environment import Settings
from service.commands.screen import console, progress_bar, tell_of_priority
from service.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from rich.progress import TaskID

    from service.banks.build import BankPlan, OnProgress
    from service.banks.store import Bank, BankStore
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
    learned of a subject; and the oracles, if a method of the policy's ladder reads any. Says first what it costs.
    Several of these commands at once share the work.
    """
    from audit.policy import load_policy
    from service.banks import replica
    from service.banks.build import build_bank, plan_bank
    from service.banks.oracles import FIRST_SEED as FIRST_ORACLE
    from service.banks.oracles import build_oracles, n_asked_for, oracle_plan
    from service.banks.originals import FIRST_SEED as FIRST_ORIGINAL
    from service.banks.originals import N_ORIGINALS, build_originals, originals_plan
    from service.banks.refresh import publish, survey
    from service.banks.store import BankStore
    from service.context import Context
    from service.training.answers import require_good_model_in_service
    from service.training.data import asked_to_go, images_in_service, recipe_of
    from service.training.spec import open_images

    context = Context.open(Settings())
    require_good_model_in_service(context)
    settings, recipe, policy = context.settings, recipe_of(context), load_policy(context.settings.policy)
    images = images_in_service(context, recipe)
    faces = open_images(images)
    absent = asked_to_go(context, faces)
    known = tuple(subject for subject in faces.train_subjects() if subject not in absent)
    unknown = [subject for subject in subjects or [] if subject not in known]
    if unknown:
        raise StartupError(f"Expected people of the training split, got {len(unknown)} others among the arguments.")
    plans = {}
    for subject in subjects or known:
        plan = plan_bank(context, recipe, images, forget={subject}, absent=absent, n_models=policy.n_models)
        plans[plan.key.digest] = plan
    store, n_oracles = BankStore(settings.banks_folder), n_asked_for(settings, policy)
    banks = "1 bank" if len(plans) == 1 else f"{len(plans)} banks"
    kinds: list[tuple[str, Callable[..., Bank], list[BankPlan], int, int]] = [
        (f"reference models, {banks}", build_bank, [*plans.values()], policy.n_models, 0)
    ]
    if not subjects:
        everybody = originals_plan(context, recipe, images, absent)
        kinds.append(("originals, trained with everybody", build_originals, [everybody], N_ORIGINALS, FIRST_ORIGINAL))
    if n_oracles:
        oracles = [oracle_plan(plan) for plan in plans.values()]
        kinds.append((f"oracles, {banks}", build_oracles, oracles, n_oracles, FIRST_ORACLE))
    lacking = [len(store.missing_seeds(plan.key, n, first=seed)) for _, _, of, n, seed in kinds for plan in of]
    console.print(price_of(store, recipe, sum(lacking), now=context.now()))
    tell_of_priority(context.settings)
    with progress_bar() as bar:

        def advance(task: TaskID, before: int, done: int, _: int) -> None:
            bar.update(task, completed=before + done)

        for title, build, of_kind, n_models, _ in kinds:
            task = bar.add_task(title, total=len(of_kind) * n_models)
            for i, plan in enumerate(of_kind):
                build(store, plan, n_models, settings, partial(advance, task, i * n_models), now=context.now())
    replica.publish(context)
    publish(context, survey(context, policy))
    for title, _, _, n_models, _ in kinds:
        console.print(f"{title}: {n_models} models each, in {settings.banks_folder}")


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
    """Train anew the banks that erasures made too stale, or nearly, as the worker does while no run is open."""
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

        n_built = rebuild(context, policy, missing_too=everything, on_block=on_block if child_of is None else None)
    if child_of is None:
        console.print(
            f"{n_built} banks were built anew." if n_built else "Every bank may judge, also after one more erasure."
        )


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
