"""The database's schema, step by step: one file a step in `versions/`, numbered, never changed once released.

Every process brings the database up to date when it opens it. A step and its number are one transaction under a lock,
so processes that start together do not collide, and one that is killed leaves the schema as it was. A database that a
newer Expunge has upgraded is refused. There is no way back but a backup.

    python -m service.store.migrations "what changes"

writes the next file from the difference between the migrations and `tables.py`; read it, and mend what data need.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from service.errors import StartupError

if TYPE_CHECKING:
    from alembic.config import Config

FOLDER: Final = Path(__file__).parent
STEPS: Final = tuple(sorted(path.name[:4] for path in (FOLDER / "versions").glob("[0-9]*.py")))
FIRST, HEAD = STEPS[0], STEPS[-1]

_LOCK: Final = 0x657870756E6765  # PostgreSQL's advisory lock of whoever changes the schema; "expunge" in ASCII
_VERSIONS: Final = sa.table("alembic_version", sa.column("version_num", sa.String))


def upgrade(engine: sa.Engine) -> str | None:
    """Bring the schema up to date; gives the step it was at, or none if the database was empty.

    A database with tables and no number was made by the first release, which had no migrations yet: it is at `FIRST`.

    Raises:
        StartupError: the database is newer than this program.
    """
    with engine.connect().execution_options(read_only=True) as connection:
        if _number(connection) == HEAD:  # nearly always, and without a lock
            return HEAD
    from alembic import command  # which nobody needs whose database is up to date

    with engine.begin() as connection:  # SQLite: BEGIN IMMEDIATE, so nobody else writes
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        found = step_of(connection)
        if found is not None and found not in STEPS:
            raise StartupError(
                f"Expected a database of schema {HEAD} or earlier, found {found}: a newer Expunge has upgraded it. "
                "Start that version, or restore the backup made before the upgrade."
            )
        config = config_of(connection)
        if found == FIRST:
            command.stamp(config, FIRST)
        command.upgrade(config, "head")
        return found


def step_of(connection: sa.Connection) -> str | None:
    """Number of the schema that the database has, or none if it is empty."""
    number = _number(connection)
    return FIRST if number is None and sa.inspect(connection).has_table("erasure_requests") else number


def config_of(connection: sa.Connection) -> Config:
    """What Alembic wants to know, for commands on this connection."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    return config


def _number(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    number: str | None = connection.execute(sa.select(_VERSIONS.c.version_num)).scalar_one_or_none()
    return number
