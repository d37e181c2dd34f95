"""Rosters: whom each model version learned from; what the worker last saw of the data folder."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "learned_subjects",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("subject_hash", sa.String(), nullable=False),
        sa.Column("n_images", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "subject_hash"),
    )
    with op.batch_alter_table("learned_subjects", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_learned_subjects_subject_hash"), ["subject_hash"], unique=False)

    with op.batch_alter_table("worker_leases", schema=None) as batch_op:
        batch_op.add_column(sa.Column("data_obstacle", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("n_returned", sa.Integer(), nullable=True))
