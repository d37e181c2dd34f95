"""PostgreSQL's own programs, `pg_dump` and `pg_restore`, which must be of the server's version or later.

Tested in `tests/service/backups/test_restore.py`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from service.errors import BackupError
from service.launch import inherited
from service.settings import Settings

WORKFLOWS: Final = "dbos"  # schema of durable execution, without which a run begins anew
_QUERY: Final = {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY"}


def dump(settings: Settings, file: Path) -> None:
    """Write the database to a file, as it is at one moment; nothing waits for it.

    Raises:
        BackupError: `pg_dump` is not there, or could not do it.
    """
    _run(
        settings, "pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--exclude-schema={WORKFLOWS}",
        f"--file={file}",
    )  # fmt: skip


def restore(settings: Settings, file: Path) -> None:
    """Bring a dump into an empty database, whole or not at all.

    Raises:
        BackupError: `pg_restore` is not there, or could not do it.
    """
    _run(
        settings, "pg_restore", "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges",
        f"--dbname={_url(settings).database}", str(file),
    )  # fmt: skip


def _run(settings: Settings, program: str, *arguments: str) -> None:
    found = shutil.which(program)
    if found is None:
        raise BackupError(
            f"Expected {program} of PostgreSQL on the PATH, found none; install PostgreSQL's client programs, of the "
            "server's version or later (Debian: postgresql-client)."
        )
    done = subprocess.run(
        [found, "--no-password", *arguments], env=inherited(settings) | _environment(_url(settings)),
        capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().partition("\n")[0]  # later lines may quote rows
        raise BackupError(f"Expected {program} to do its part: {said or f'it ended with status {done.returncode}'}")


def _url(settings: Settings) -> sa.URL:
    return sa.make_url(settings.effective_database_url)


def _environment(url: sa.URL) -> dict[str, str]:
    """The URL as libpq's variables: an argument could be read by every user of the machine."""
    values = {
        "PGHOST": url.host, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
    } | {variable: url.query.get(name) for name, variable in _QUERY.items()}  # fmt: skip
    return {name: str(value) for name, value in values.items() if value not in (None, "")}
