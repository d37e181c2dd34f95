"""`expunge backup` and `expunge restore`. Tested in `tests/service/backups/test_restore.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.environment import Settings
from service.commands.screen import console
from service.errors import BackupError


def backup(
    file: Annotated[Path, typer.Argument(help="A new file; - is the standard output, for a program that encrypts.")],
) -> None:
    """Back up database, keys, data, models and banks into one file, while everything runs.

    The file is not encrypted and holds the private keys and everybody's images: it is readable by its owner alone. It
    gets its name when it is whole and on the disk. Existing files are not replaced.
    """
    from service.backups.taking import back_up
    from service.context import utc_now
    from service.store import fail_points

    settings = Settings()
    target = None if str(file) == "-" else file
    try:
        manifest = back_up(settings, target, now=utc_now, reached=lambda point: fail_points.reached(settings, point))
    except FileExistsError as error:
        raise BackupError(
            f"Expected the name of a new file, {file} exists; give each backup a name of its own."
        ) from error
    except OSError as error:
        raise BackupError(f"Expected to write the backup to {file}: {error.strerror or error}.") from error
    if target is not None:
        n_bytes = file.stat().st_size
        console.print(
            f"{file}: {len(manifest.files):,} files, {n_bytes / 1e6:,.1f} MB, log of {manifest.log_size:,} entries, "
            f"as of {manifest.created_at}.",
            soft_wrap=True, markup=False,
        )  # fmt: skip


def restore(
    file: Annotated[Path, typer.Argument(help="A file of `expunge backup`; - is the standard input.")],
    *,
    erased_since: Annotated[
        str | None,
        typer.Option(
            metavar="HOME|FILE|URL",
            help="Who knows whom the service has erased since the backup: the old home, a later backup, or the URL of "
            "the PostgreSQL database.",
        ),
    ] = None,
    nothing_newer: Annotated[
        bool, typer.Option("--nothing-newer", help="Nothing newer than the backup is left.")
    ] = False,
    asked: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="User ids of people who asked to be erased since, one a line."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare every file of the backup with its digest; writes nothing.")
    ] = False,
) -> None:
    """Restore a backup into the empty folder EXPUNGE_HOME, without those who were erased since.

    The records of a newer database (--erased-since) take the place of the backup's. Whoever was erased since is in the
    backup's data again: their erasures are filed anew, and the worker carries them out. Until then no weights that
    remember one of them answer predictions.
    """
    from service.backups import restore as restoring
    from service.context import utc_now
    from service.store import fail_points

    source = None if str(file) == "-" else file
    try:
        if check:
            manifest = restoring.check(source)
            console.print(
                f"{file} is whole: {len(manifest.files):,} files as of {manifest.created_at}, of Expunge "
                f"{manifest.expunge}.",
                soft_wrap=True, markup=False,
            )  # fmt: skip
            return
        if (erased_since is None) != nothing_newer:
            raise BackupError(
                "Expected either --erased-since, with the old home, a later backup or the database's URL, or "
                "--nothing-newer: people who were erased after the backup are in it, and must be erased again."
            )
        settings = Settings()
        restored = restoring.restore(
            settings, source, newer=erased_since, asked=_user_ids(asked), now=utc_now,
            reached=lambda point: fail_points.reached(settings, point),
        )  # fmt: skip
    except OSError as error:
        given = error.filename if error.filename in {str(each) for each in (file, erased_since, asked)} else ""
        raise BackupError(  # no other name: an image's may be telling
            f"Expected to read the backup{given and f', {given},'} and to write the home: {error.strerror or error}."
        ) from error
    if restored.manifest is None or restored.settled is None:
        console.print("The restore that was interrupted had all but ended; it is whole now.")
        return
    settled = restored.settled
    console.print(f"Restored the service as of {restored.manifest.created_at} into {settings.home}.", soft_wrap=True)
    if settled.n_weights:
        console.print(f"Destroyed {settled.n_weights} older weights that remember somebody erased since.")
    if settled.n_filed:
        console.print(
            f"Filed {settled.n_filed} erasure requests, of client `restore`; start `expunge worker`.", markup=False
        )
    if not settled.is_served:
        console.print(
            "Predictions are refused until the worker has put weights into service that remember none of them."
        )
    if nothing_newer:
        console.print(
            "The log goes on from the backup's end: tell auditors. Keys that were revoked since work again: revoke "
            "them now. File the erasures of people whom --asked did not name before you start `expunge serve`.",
            soft_wrap=True, markup=False,
        )  # fmt: skip


def _user_ids(file: Path | None) -> list[str]:
    if file is None:
        return []
    from pydantic import TypeAdapter, ValidationError

    from service.requests.schemas import UserId

    adapter, found = TypeAdapter(UserId), list[str]()
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(adapter.validate_python(line.strip()))
        except ValidationError:
            raise BackupError(
                f"Expected a user id as the data have it in line {number} of {file}: printable, in Unicode form NFC, "
                "at most 256 characters. Nothing was restored."
            ) from None
    return found
