"""A home made from a backup, in an empty folder: whole, or refused by everything that starts in it.

Everything is prepared in a folder beside the final places, also what happened since (`records`). That folder is renamed
when it is whole and on the disk; from then on a killed restore only has to move its entries, before that it begins
again. With PostgreSQL the database is filled last, in one transaction, and settled in another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from service.backups import archive, postgres, records
from service.backups.archive import POSTGRESQL, SQLITE, Manifest
from service.backups.records import Settled
from service.backups.taking import copy_sqlite
from service.context import Context
from service.errors import BackupError
from service.keys.keyring import Keyring
from service.settings import Settings
from service.store import migrations
from service.store.engine import connect, engine_of, scrub_free_pages, starting
from service.store.fail_points import is_mark
from service.store.restoring import RESTORED, RESTORING
from unlearning import files

_FRESH: Final = ("lost+found",)  # what a new volume has
_MOVES_LAST: Final = "keys"


@dataclass(frozen=True)
class Restored:
    """What was restored; none of both where a killed restore only had to be finished."""

    manifest: Manifest | None = None
    settled: Settled | None = None


def restore(
    settings: Settings,
    source: Path | None,
    *,
    newer: str | None = None,
    asked: list[str],
    now: Callable[[], datetime],
    reached: Callable[[str], None] = lambda point: None,
) -> Restored:
    """Restore a backup into an empty home, and an empty database if it is of PostgreSQL.

    Args:
        source: the file, or none for the standard input.
        newer: who knows what happened since: a home, a later backup, or the URL of a PostgreSQL database; none: nobody.
        asked: user ids of people to be erased, whom the newer records do not name.

    Raises:
        BackupError: the home or database is not empty, the backup is not whole, or the newer records are not of this
            service or not newer.
    """
    home = settings.home
    home.mkdir(parents=True, exist_ok=True)
    if (home / RESTORED).exists():
        _move(home, reached)
        return Restored()
    files.sweep_scratch(home, RESTORING)
    _require_empty(settings)
    with files.scratch(home, RESTORING) as scratch:
        whole = scratch / "home"
        whole.mkdir()
        with source.open("rb") if source is not None else nullcontext(sys.stdin.buffer) as stream:
            manifest = archive.extract(stream, whole)
        reached("restore.extracted")
        inner = settings.model_copy(update={"home": whole, "storage_url": ""})
        with _records_of(newer, scratch, manifest) as known:
            if known is not None and known.keys is not None:
                files.destroy_folder(whole / "keys")
                os.rename(known.keys, whole / "keys")
            engine = _bring_database(inner, manifest)
            try:
                context = Context(inner, engine, Keyring.open(inner.keys_folder), now=now)
                if known is not None:
                    records.take_over(context, known.engine)
                reached("restore.taken_over")
                settled = records.settle(context, asked, created_at=manifest.created_at, was_told=known is not None)
                scrub_free_pages(engine)
            finally:
                engine.dispose()
        reached("restore.settled")
        os.sync()
        os.rename(whole, home / RESTORED)
        files.flush_folder(home)
    reached("restore.placed")
    _move(home, reached)
    return Restored(manifest, settled)


def check(source: Path | None) -> Manifest:
    """Read a backup and compare every file with its manifest; writes nothing.

    Raises:
        BackupError: it is not whole.
    """
    with source.open("rb") if source is not None else nullcontext(sys.stdin.buffer) as stream:
        return archive.extract(stream, None)


def _require_empty(settings: Settings) -> None:
    there = [path.name for path in settings.home.iterdir() if path.name not in _FRESH and not is_mark(path.name)]
    if there:
        raise BackupError(
            f"Expected an empty home to restore into, found {len(there)} entries in {settings.home}. Move the old home "
            "aside and name it by --erased-since, so that nobody erased since the backup comes back."
        )
    url = sa.make_url(settings.effective_database_url)
    if url.get_backend_name() == "sqlite":
        if settings.database_url:
            raise BackupError(
                "Expected EXPUNGE_DATABASE_URL to be empty or of PostgreSQL: SQLite is restored into the home. Move "
                "the file afterwards."
            )
        return
    engine = engine_of(settings)
    with starting(engine), engine.connect() as connection:
        found = migrations.step_of(connection)
    engine.dispose()
    if found is not None:
        raise BackupError(
            "Expected an empty database at EXPUNGE_DATABASE_URL, found one with tables. Create a new one; name the old "
            "one by --erased-since if it is newer than the backup."
        )


def _bring_database(inner: Settings, manifest: Manifest) -> sa.Engine:
    """The backup's database where the settings say, its schema up to date."""
    is_dump, file = archive.kind_of(manifest) == "postgresql", inner.home / "database"
    url = sa.make_url(inner.effective_database_url)
    if is_dump != (url.get_backend_name() == "postgresql"):
        raise BackupError(
            f"Expected EXPUNGE_DATABASE_URL to be of {'PostgreSQL' if is_dump else 'SQLite (empty)'}, as the backup is."
        )
    if is_dump:
        postgres.restore(inner, inner.home / POSTGRESQL)
        files.destroy(inner.home / POSTGRESQL)
    else:
        os.rename(inner.home / SQLITE, inner.home / "expunge.db")
    file.rmdir()
    return connect(inner)


@dataclass(frozen=True)
class _Newer:
    engine: sa.Engine
    keys: Path | None  # a copy of the newer keys, since the signing key may have been rotated


@contextmanager
def _records_of(newer: str | None, scratch: Path, manifest: Manifest) -> Iterator[_Newer | None]:
    """The newer records, read from a copy: what they come from stays as it is."""
    if newer is None:
        yield None
        return
    if newer.startswith("postgresql"):
        engine = engine_of(Settings(home=scratch, database_url=newer))
        with starting(engine), engine.connect() as connection:
            found = migrations.step_of(connection)
        if found != migrations.HEAD:
            engine.dispose()
            raise BackupError(f"Expected newer records of schema {migrations.HEAD}, found {found}; upgrade them first.")
        try:
            yield _Newer(engine, None)
        finally:
            engine.dispose()
        return
    copy, place = scratch / "newer", Path(newer)
    copy.mkdir()
    if place.is_dir():
        if not (place / "expunge.db").exists():
            raise BackupError(
                f"Expected a home with expunge.db in {place}, found none; for PostgreSQL give the database's URL."
            )
        _copy_database(place / "expunge.db", copy / "expunge.db")
        _copy_keys(place / "keys", copy / "keys")
    else:
        with place.open("rb") as stream:
            later = archive.extract(stream, copy, only=("keys/", "database/"))
        if archive.kind_of(later) == "postgresql":
            raise BackupError(
                "Expected a later backup of SQLite, got one of PostgreSQL: bring its database/expunge.dump into a "
                "database by pg_restore, and give that database's URL."
            )
        os.rename(copy / SQLITE, copy / "expunge.db")
    engine = connect(Settings(home=copy, database_url=""))
    try:
        yield _Newer(engine, copy / "keys")
    finally:
        engine.dispose()


def _copy_database(source: Path, copy: Path) -> None:
    """The database as it is at one moment; where nobody can write, as on a disk mounted to be saved, its files."""
    if os.access(source.parent, os.W_OK):
        copy_sqlite(source, copy)
        return
    for ending in ("", "-wal"):  # SQLite itself needs to write beside a database with such a log
        there = source.with_name(source.name + ending)
        if there.exists():
            with files.new_file(copy.with_name(copy.name + ending)) as file:
                file.write(there.read_bytes())


def _copy_keys(source: Path, copy: Path) -> None:
    for name, _, names in os.walk(source):
        folder = copy / Path(name).relative_to(source)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in names:
            with files.new_file(folder / each) as file:
                file.write(Path(name, each).read_bytes())


def _move(home: Path, reached: Callable[[str], None]) -> None:
    """Everything to its final place, the keys last; can be repeated."""
    whole = home / RESTORED
    for path in sorted(whole.iterdir(), key=lambda path: (path.name == _MOVES_LAST, path.name)):
        os.rename(path, home / path.name)
        reached("restore.moved")
    files.flush_folder(home)
    whole.rmdir()
    files.flush_folder(home)
