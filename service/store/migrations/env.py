"""What Alembic runs: the migrations on the connection that `upgrade` gives it, in that connection's transaction.

Tested in `tests/service/store/test_migrations.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlmodel import AutoString

from service.store import tables
from service.store.instants import UtcDateTime


def _in_plain_sql(kind: str, item: Any, _: object) -> str | Literal[False]:
    """Steps name the database's types, not our classes: these may change, a step may not."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, AutoString):
        return "sa.String()"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.SQLModel.metadata,
    render_as_batch=True,  # SQLite cannot alter a column: there the table is copied
    render_item=_in_plain_sql,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
