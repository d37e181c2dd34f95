"""Processes: what one is told by, and what the worker waits for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    with op.batch_alter_table("worker_leases", schema=None) as batch_op:
        batch_op.add_column(sa.Column("process", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("waits_for", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("waits_since", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("serving_workers", schema=None) as batch_op:
        batch_op.add_column(sa.Column("process", sa.String(), nullable=True))
