"""Rollback orders; quotas and rotation of keys; a commitment's salt ends with its request."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "rollback_orders",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("line", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("from_digest", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("ordered_by", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=True),
        sa.Column("log_index", sa.Integer(), nullable=True),
        sa.Column("ordered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("rollback_orders", schema=None) as batch_op:
        batch_op.create_index(
            "one_open_rollback",
            ["line"],
            unique=True,
            sqlite_where=sa.text("state = 'ordered'"),
            postgresql_where=sa.text("state = 'ordered'"),
        )

    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("previous_sha256", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("previous_until", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("most_open", sa.Integer(), nullable=True))

    with op.batch_alter_table("erasure_requests", schema=None) as batch_op:
        batch_op.alter_column("commitment_salt", existing_type=sa.VARCHAR(), nullable=True)

    with op.batch_alter_table("idempotency_records", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotency_records_created_at"), ["created_at"], unique=False)

    requests = sa.table("erasure_requests", sa.column("state", sa.String), sa.column("commitment_salt", sa.String))
    ended = requests.c.state.in_(("completed", "cancelled", "rejected"))
    op.execute(requests.update().where(ended).values(commitment_salt=None))
    _take_salts_out_of_answers(op.get_bind())


def _take_salts_out_of_answers(connection: sa.Connection) -> None:
    """Answers kept for a repeated call had a copy of each salt."""
    records = sa.table(
        "idempotency_records",
        sa.column("client_id", sa.String),
        sa.column("key", sa.String),
        sa.column("response", sa.JSON),
    )
    for client_id, key, response in connection.execute(sa.select(records)).all():
        for receipt in response["requests"]:
            receipt["commitment_salt"] = None
        of_call = (records.c.client_id == client_id) & (records.c.key == key)
        connection.execute(records.update().where(of_call).values(response=response))
