"""When requests were filed here, apart from when the controller received them; the caller's own number of the case."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    with op.batch_alter_table("erasure_requests", schema=None) as batch_op:
        batch_op.add_column(sa.Column("case_reference", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("filed_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE erasure_requests SET filed_at = received_at")  # until now the two were one
    with op.batch_alter_table("erasure_requests", schema=None) as batch_op:
        batch_op.alter_column("filed_at", existing_type=sa.DateTime(timezone=True), nullable=False)
        batch_op.create_index(batch_op.f("ix_erasure_requests_filed_at"), ["filed_at"], unique=False)
