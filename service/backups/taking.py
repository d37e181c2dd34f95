"""A backup of the home and the request database, taken while everything runs.

The database is copied as it is at one moment, then the files. Nothing waits for that, least of all an erasure: instead,
what would make the two disagree is looked at before and afterwards, and if somebody's data were being destroyed or the
data, the keys or the weights changed meanwhile, the backup begins again.

Not in it: packed images and workflows (made again when needed), working files of an open run, candidates, logs.

Tested in `tests/service/backups/test_restore.py`.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Final

import sqlalchemy as sa
from sqlmodel import col, select

from audit.proof import log as proof_log
from service import __version__
from service.backups import archive, postgres
from service.context import LINE, Context
from service.errors import BackupError, WeightsError
from service.keys.keyring import SECRETS, Keyring
from service.models import networks, registry
from service.requests import data_folder
from service.settings import Settings
from service.store import ledger, migrations
from service.store.engine import engine_of, reading, starting
from service.store.restoring import BACKING_UP, refuse_unfinished
from service.store.tables import Deployment, ModelVersion, OpenLine, Run
from unlearning import files
from unlearning.errors import FacesError
from unlearning.faces.dataset import METADATA, read_metadata
from unlearning.files import left_behind

ATTEMPTS: Final = 3
PATIENCE_SECONDS: Final = 120.0  # for an erasure that is destroying something
_LEFT_OUT = ("candidate", "destroyed")  # states of versions whose weights are not in a backup


class _ChangedError(Exception):
    """The home changed while it was copied."""


@dataclass(frozen=True)
class _Look:
    """What a backup rests on and an erasure, a training or a rotation changes."""

    destroying: bool  # an open run has begun its purge
    runs: frozenset[str]  # whose purge has begun or ended
    versions: frozenset[tuple[str, str]]  # digest and state
    pointer: tuple[str, int] | None
    table: str
    keys: str


def back_up(
    settings: Settings,
    target: Path | None,
    *,
    now: Callable[[], datetime],
    reached: Callable[[str], None] = lambda point: None,
    sleep: Callable[[float], None] = time.sleep,
) -> archive.Manifest:
    """Write a backup to a new file, or to the standard output; what could not be finished has no manifest.

    Raises:
        StartupError: the database cannot be used.
        BackupError: there is no home, the file would lie in it, it changed all the time, or an erasure did not end its
            purge.
        FileExistsError: there is a file of the name.
    """
    if target is not None and target.resolve().is_relative_to(settings.home.resolve()):
        raise BackupError(
            f"Expected a file outside of the home {settings.home}, got {target}: no erasure reaches into a backup, and "
            "in the home nothing may be left of whom it erased. Name a folder elsewhere."
        )
    context = _open(settings, now)
    try:
        if target is None:
            _settle(context, sleep)
            return _once(context, sys.stdout.buffer, reached)
        target.parent.mkdir(parents=True, exist_ok=True)
        files.sweep(target.parent)  # what a killed backup left
        for _ in range(ATTEMPTS):
            _settle(context, sleep)
            try:
                with files.new_file(target, reached=lambda point: reached(f"backup.{point}")) as stream:
                    return _once(context, stream, reached)
            except _ChangedError:
                continue
        raise BackupError(
            f"Expected the home to hold still while it was copied, but in {ATTEMPTS} attempts somebody was erased, or "
            "the data, keys or models changed. Run it again; where that does not help, stop the worker meanwhile."
        )
    except _ChangedError:
        raise BackupError(
            "Expected the home to hold still while it was copied, but somebody was erased, or the data, keys or models "
            "changed. What was written is no backup; run it again."
        ) from None
    finally:
        context.engine.dispose()


def _open(settings: Settings, now: Callable[[], datetime]) -> Context:
    """The home as it is: no schema is changed, so that the backup before an upgrade is of the time before it."""
    refuse_unfinished(settings.home)
    missing = [name for name in ("signing.pem", *SECRETS) if not (settings.keys_folder / name).exists()]
    database = sa.make_url(settings.effective_database_url)
    if missing or (database.get_backend_name() == "sqlite" and not Path(database.database or "").exists()):
        raise BackupError(
            f"Expected EXPUNGE_HOME to be a service's home with its keys and its database, {settings.home} is not."
        )
    engine = engine_of(settings)
    with starting(engine), engine.connect().execution_options(read_only=True) as connection:
        found = migrations.step_of(connection)
    if found != migrations.HEAD:
        engine.dispose()
        raise BackupError(
            f"Expected a database of schema {migrations.HEAD}, found {found}: back up with the version of Expunge that "
            "runs, before you install another."
        )
    return Context(settings, engine, Keyring.open(settings.keys_folder), now=now)


def _settle(context: Context, sleep: Callable[[float], None]) -> None:
    """Wait until nothing is being destroyed; then see that the data folder is whole."""
    for _ in range(int(PATIENCE_SECONDS)):
        if not _look(context).destroying:
            break
        sleep(1)
    else:
        raise BackupError(
            "Expected no erasure in the middle of its purge, whose data are half destroyed, but one did not end it in "
            f"{PATIENCE_SECONDS:.0f} s. Where it waits for a human, approve it first; then run this again."
        )
    if isinstance(found := data_folder.look(context), str):
        raise BackupError(
            f"Expected a data folder that can be relied on. {found.removeprefix(data_folder.COULD_NOT_LOOK)}"
        )


def _once(context: Context, stream: IO[bytes], reached: Callable[[str], None]) -> archive.Manifest:
    settings, before = context.settings, _look(context)
    if before.destroying:
        raise _ChangedError
    files.sweep_scratch(settings.home, BACKING_UP)
    with files.scratch(settings.home, BACKING_UP) as scratch:
        created_at = context.now()
        with reading(context.engine) as s:
            hashes = ledger.leaf_hashes(s)
        name, copy = _copy_database(context, scratch)
        reached("backup.database")
        with archive.Writer(stream) as writer:
            writer.add(name, copy)
            try:
                _add_files(context, writer, reached)
            except (FileNotFoundError, FacesError) as error:
                raise _ChangedError from error
            if _look(context) != before or not _names_of_table(settings) <= writer.files.keys():
                raise _ChangedError
            return writer.finish(
                created_at=created_at.isoformat(), expunge=__version__, schema=migrations.HEAD,
                log_size=len(hashes), log_root=proof_log.root(hashes).hex(),
            )  # fmt: skip


def _copy_database(context: Context, scratch: Path) -> tuple[str, Path]:
    """Name in the backup and file of the database's copy, as of one moment; writers go on meanwhile."""
    url = context.engine.url
    if url.get_backend_name() == "postgresql":
        copy = scratch / "expunge.dump"
        postgres.dump(context.settings, copy)
        return archive.POSTGRESQL, copy
    copy = scratch / "expunge.db"
    copy_sqlite(Path(url.database or ""), copy)
    return archive.SQLITE, copy


def copy_sqlite(source: Path, copy: Path) -> None:
    """SQLite's online backup in one step: in WAL mode neither side waits for the other.

    Raises:
        BackupError: the copy could not be made.
    """
    try:
        with closing(sqlite3.connect(source, timeout=30)) as there, closing(sqlite3.connect(copy)) as here:
            there.backup(here)
    except sqlite3.OperationalError as error:
        raise BackupError(f"Expected to copy the database to {copy.parent}: {error}.") from error
    copy.chmod(0o600)


def _add_files(context: Context, writer: archive.Writer, reached: Callable[[str], None]) -> None:
    settings = context.settings
    for path in _files_below(settings.keys_folder):
        writer.add(f"keys/{path.relative_to(settings.keys_folder)}", path)
    for path in sorted(settings.home.glob("*.json")):
        writer.add(path.name, path)
    for path in _files_below(settings.data_folder):
        writer.add(f"data/{path.relative_to(settings.data_folder).as_posix()}", path)
    reached("backup.data")
    named = set()
    for version in registry.versions(context):
        if version.state not in _LEFT_OUT:
            _add_weights(context, writer, version.digest)
            named.add(version.manifest.get("network", ""))
    for network in sorted(named - {""}):
        if (path := networks.path(settings, network)).exists():
            writer.add(f"models/{path.name}", path)
    for folder in (settings.banks_folder, settings.evaluations_folder, settings.reports_folder):
        for path in _files_below(folder):
            try:
                writer.add(path.relative_to(settings.home).as_posix(), path)
            except FileNotFoundError:
                continue  # a bank that was replaced, or a report that expired, which nothing else refers to
    reached("backup.files")


def _add_weights(context: Context, writer: archive.Writer, digest: str) -> None:
    path = registry.path(context.settings, digest)
    name = f"models/{path.name}"
    if not path.exists():  # this machine has none of its own
        writer.add_bytes(name, bytes(registry.load_checked(context, digest).content))
    elif (found := writer.add(name, path)) != digest:
        raise WeightsError(f"Expected weights with SHA-256 {digest}, found {found} in {path.parent}.")


def _files_below(folder: Path) -> Iterator[Path]:
    """Files of a folder, without packs, locks and what is being written."""
    for name, below, names in os.walk(folder):
        below[:] = sorted(each for each in below if not each.startswith(".") and each != "locks")
        for each in sorted(names):
            path = Path(name, each)
            if not left_behind(each) and not each.endswith(".lock") and path.is_file():
                yield path


def _names_of_table(settings: Settings) -> set[str]:
    """Names in the backup of the images that the table names."""
    if not (settings.data_folder / METADATA).exists():
        return set()
    return {f"data/{row.file_name}" for row in read_metadata(settings.data_folder)}


def _look(context: Context) -> _Look:
    with reading(context.engine) as s:
        line, pointer = s.get(OpenLine, LINE), s.get(Deployment, LINE)
        run = s.get(Run, line.run_id) if line is not None else None
        begun = s.exec(select(Run.id).where(col(Run.stage).in_(("purging", "completed"))))
        versions = s.exec(select(ModelVersion.digest, ModelVersion.state).where(ModelVersion.state != "candidate"))
        return _Look(
            destroying=run is not None and bool(run.purge),
            runs=frozenset(begun),
            versions=frozenset((digest, state) for digest, state in versions),
            pointer=(pointer.committed_digest, pointer.committed_generation) if pointer is not None else None,
            table=_digest_of(context.settings.data_folder / METADATA),
            keys=" ".join(_digest_of(path) for path in _files_below(context.settings.keys_folder)),
        )


def _digest_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""
