"""Reference blocks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "reference_blocks",
        sa.Column("line", sa.String(), nullable=False),
        sa.Column("block", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("bank", sa.String(), nullable=True),
        sa.Column("n_people", sa.Integer(), nullable=False),
        sa.Column("n_models", sa.Integer(), nullable=False),
        sa.Column("n_wanted", sa.Integer(), nullable=False),
        sa.Column("n_next", sa.Integer(), nullable=False),
        sa.Column("n_learned", sa.Integer(), nullable=False),
        sa.Column("n_gone", sa.Integer(), nullable=False),
        sa.Column("staleness", sa.Float(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("cost_seconds", sa.Float(), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("line", "block"),
    )
