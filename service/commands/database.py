"""`expunge database …`: the schema of the request database. Tested in `tests/service/test_cli.py`."""

from __future__ import annotations

import typer

from service.commands.environment import Settings
from service.commands.screen import console

database_app = typer.Typer(
    no_args_is_help=True,
    help="""The schema of the request database.

    Every process brings it up to date when it starts, so neither command is needed; `upgrade` does it ahead of the
    start, for example with an account that may change tables.
    """,
)


@database_app.command("status")
def database_status() -> None:
    """Which schema the database has, and which one this version of Expunge works with; changes nothing."""
    from service.store import engine as db
    from service.store import migrations

    engine = db.engine_of(Settings())
    with db.starting(engine), engine.connect().execution_options(read_only=True) as connection:
        found = migrations.step_of(connection)
    place = engine.url.render_as_string(hide_password=True)
    console.print(f"{place}: schema {found or 'none'}, this version has {migrations.HEAD}.", soft_wrap=True)
    engine.dispose()


@database_app.command("upgrade")
def database_upgrade() -> None:
    """Bring the schema up to date; back up the database before, there is no way back."""
    from service.store import engine as db
    from service.store import migrations

    engine = db.engine_of(Settings())
    with db.starting(engine):
        found = migrations.upgrade(engine)
    console.print(f"Schema {migrations.HEAD}; it was {found or 'none'}.")
    engine.dispose()
