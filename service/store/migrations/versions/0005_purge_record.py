"""Purge records: what a run was seen to destroy, and how often it was resumed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("n_resumptions", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("purge", sa.JSON(), nullable=True))
