"""A home made ready for `expunge up` and the demo: data, a first model, a key; and waiting until it is served."""

from __future__ import annotations

import secrets
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sqlmodel import select

from service.context import Context
from service.keys import api_keys
from service.launch import Processes
from service.listening import url_of
from service.models.deployment import pointer
from service.settings import Settings
from service.store.engine import reading, session
from service.store.tables import ServingWorker
from service.training.production import train_production
from unlearning.faces.dataset import METADATA
from unlearning.faces.sources import att


def prepare_home(settings: Settings, console: Console) -> str | None:
    """Data, model and a key for `expunge up`, each made only if there is none; gives the key's secret if one was made.

    The database has only a hash of it, so it is to be shown.
    """
    context = Context.open(settings)
    if not (settings.data_folder / METADATA).exists():
        wheel = att.find_or_download_wheel(made(settings.home / "downloads"))
        att.write_folder(wheel, settings.data_folder)
        console.print(f"No data yet: wrote the AT&T faces to {settings.data_folder}.")
    if pointer(context) is None:
        console.print("No model yet: training one.")
        train(context, console)
    with reading(context.engine) as s:
        has_key = api_keys.any_usable_key(s, now=context.now())
    return None if has_key else make_key(context, "operator")


def wait_ready(processes: Processes, settings: Settings) -> None:
    """Until every serving process answers with the active generation and the console listens."""
    context = Context.open(settings)

    def serving() -> bool:
        with reading(context.engine) as s:
            rows = s.exec(select(ServingWorker).where(ServingWorker.lease_until > context.now())).all()
        return sum(row.acknowledged_generation >= 1 for row in rows) >= settings.api_workers

    processes.wait_until(serving, f"{settings.api_workers} serving processes to load the model", 120)

    def console_listens() -> bool:
        try:
            return httpx.get(f"{url_of(settings, 'console_')}/health").is_success
        except httpx.HTTPError:
            return False

    processes.wait_until(console_listens, "the worker's console to listen", 60)


def train(context: Context, console: Console) -> None:
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


def make_key(context: Context, name: str) -> str:
    """Make a key of every scope; gives its secret."""
    with session(context.engine) as s:
        _, token = api_keys.create_key(
            s, name=name, scopes=api_keys.SCOPES, now=context.now(), key_id=secrets.token_hex(4)
        )
        s.commit()
    return token


def made(folder: Path) -> Path:
    """The folder, which is there now."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
