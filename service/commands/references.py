"""`expunge references …`: banks of models trained without a block of subjects."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from service.commands.screen import console, progress_bar, tell_of_priority
from service.errors import StartupError
from service.settings import Settings

if TYPE_CHECKING:
    from rich.progress import TaskID

    from service.banks.build import OnProgress

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

    Also the oracles, if a method of the policy's ladder reads any. Several of these commands at once share the work.
    """
    from audit.policy import load_policy
    from service.banks import replica
    from service.banks.build import build_bank, plan_bank
    from service.banks.oracles import build_oracles, n_asked_for, oracle_plan
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
    tell_of_priority(context.settings)
    with progress_bar() as bar:

        def advance(task: TaskID, before: int, done: int, _: int) -> None:
            bar.update(task, completed=before + done)

        task = bar.add_task(f"reference models, {len(plans)} banks", total=len(plans) * policy.n_models)
        for i, plan in enumerate(plans.values()):
            told = partial(advance, task, i * policy.n_models)
            build_bank(store, plan, policy.n_models, settings, told, now=context.now())
        if n_oracles:
            task = bar.add_task(f"oracles, {len(plans)} banks", total=len(plans) * n_oracles)
            for i, plan in enumerate(plans.values()):
                told = partial(advance, task, i * n_oracles)
                build_oracles(store, oracle_plan(plan), n_oracles, settings, told, now=context.now())
    replica.publish(context)
    publish(context, survey(context, policy))
    beside = f", and as many of {n_oracles} oracles," if n_oracles else ""
    console.print(f"{len(plans)} banks of {policy.n_models} models each{beside} in {settings.banks_folder}")


@references_app.command("refresh")
def references_refresh(
    everything: Annotated[bool, typer.Option("--all", help="Also blocks that have no bank yet.")] = False,
    child_of: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train anew the banks that erasures made stale, as the worker does while no run is open."""
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
        console.print(f"{n_built} banks were built anew." if n_built else "Every bank is of the data as they are.")


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
