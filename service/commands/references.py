"""`expunge references …`: banks of models that never saw a person."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from rich.table import Table

from service.commands.screen import console, progress_bar
from service.errors import StartupError
from service.settings import Settings

references_app = typer.Typer(no_args_is_help=True, help="Reference banks: models that never saw a person.")


@references_app.command("build")
def references_build(
    subjects: Annotated[
        list[str] | None, typer.Argument(help="User ids whose banks to build; none: everybody's.")
    ] = None,
) -> None:
    """Build reference banks ahead, so that a request need not wait for them."""
    from audit.policy import load_policy
    from audit.references import BankStore
    from service.banks import build_bank, plan_bank
    from service.context import Context
    from service.planning import asked_to_go, pictures_of, recipe_of
    from service.trials import open_pictures

    context = Context.open(Settings())
    settings, recipe, policy = context.settings, recipe_of(context), load_policy(context.settings.policy)
    pictures = pictures_of(settings, recipe)
    faces = open_pictures(pictures)
    absent = asked_to_go(context, faces)
    known = tuple(subject for subject in faces.train_subjects() if subject not in absent)
    unknown = [subject for subject in subjects or [] if subject not in known]
    if unknown:
        raise StartupError(f"Expected people of the training split, got {len(unknown)} others among the arguments.")
    plans = {}
    for subject in subjects or known:
        plan = plan_bank(context, recipe, pictures, forget={subject}, absent=absent)
        plans[plan.key.digest] = plan
    store = BankStore(settings.banks_folder)
    with progress_bar() as bar:
        task = bar.add_task(f"reference models, {len(plans)} banks", total=len(plans) * policy.n_models)

        def advance(before: int, done: int, _: int) -> None:
            bar.update(task, completed=before + done)

        for i, plan in enumerate(plans.values()):
            build_bank(
                store, plan, policy.n_models, settings, partial(advance, i * policy.n_models),
                now=context.now(),
            )  # fmt: skip
    console.print(f"{len(plans)} banks of {policy.n_models} models each in {settings.banks_folder}")


@references_app.command("status")
def references_status() -> None:
    """Banks that are there: models, size, cost, age."""
    from audit.references import BankStore
    from service.context import utc_now

    table = Table("bank", "models", "images", "people", "size", "training", "age")
    for bank in BankStore(Settings().banks_folder).status(now=utc_now()):
        table.add_row(
            bank.key.digest[:12], f"{bank.n_models}/{bank.n_wanted}", str(bank.n_examples), str(bank.n_subjects),
            f"{bank.size_bytes / 1000:.0f} kB", f"{bank.cost_seconds:.0f} s", f"{bank.age_seconds / 3600:.1f} h",
        )  # fmt: skip
    console.print(table)
