"""Destruction of what killed processes left in the home, by the rules of `unlearning.files`.

Weights that were not registered yet remember subjects, unfinished packs hold their pixels, temporary files hold margins
or a private key. A process locks what it works with, and what is locked stays. `sweep` runs when the worker starts,
every ten minutes, and before a run's requests are completed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import structlog

from service.context import Context
from service.erasure.workspace import RunFolder
from service.settings import Settings
from service.store.engine import reading
from service.store.restoring import BACKING_UP
from service.store.tables import Run
from service.training.production import TRAINING
from unlearning import files
from unlearning.faces.packing import PACKED, UNFINISHED

log = structlog.get_logger()


def sweep(context: Context) -> int:
    """Destroy what no living process uses; gives the number of files and folders.

    These are unfinished packs, folders of trainings and backups, temporary files of the service's own folders, and
    working files of runs that ended. In the data folder only packs are destroyed, since everything else there is the
    operator's.
    """
    settings = context.settings
    n_swept = sum(files.sweep_scratch(settings.home, prefix) for prefix in (TRAINING, BACKING_UP))
    for packs in (settings.packed_folder, settings.data_folder / PACKED):
        n_swept += files.sweep_scratch(packs, UNFINISHED)
    n_swept += sum(files.sweep(folder) for folder in _folders(settings))
    n_swept += _sweep_runs(context)
    if n_swept:
        log.info("leftovers.destroyed", n=n_swept)
    return n_swept


def _folders(settings: Settings) -> Iterator[Path]:
    """The home itself and all its folders in which only the service writes."""
    yield settings.home
    for top in (
        settings.keys_folder, settings.models_folder, settings.banks_folder, settings.evaluations_folder,
        settings.runs_folder,
    ):  # fmt: skip
        for name, _, _ in os.walk(top):
            yield Path(name)


def _sweep_runs(context: Context) -> int:
    """Destroy the folders of runs that ended; the process that should have done it was killed."""
    folder = context.settings.runs_folder
    run_ids = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    with reading(context.engine) as s:
        runs = [s.get(Run, run_id) for run_id in run_ids]
    ended = [run.id for run in runs if run is not None and run.finished_at is not None]
    for run_id in ended:
        RunFolder(context.settings, run_id).destroy()
    return len(ended)
