#!/usr/bin/env bash
# On SQLite batch_alter_table drops, without a word, the table's triggers, AUTOINCREMENT and the COLLATE of columns it
# was not asked about. Named CHECK constraints and partial indexes stay.
# What one expects: what a migration does not name stays, or the migration fails.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  alembic==1.20.1 SQLAlchemy==2.1.9 || exit 2
venv/bin/python - <<'EOF'
import sys
import warnings

import alembic
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

warnings.simplefilter("ignore")

engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
with engine.begin() as connection:
    for statement in (
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT COLLATE NOCASE, n INTEGER, "
        "CONSTRAINT positive CHECK (n > 0))",
        "CREATE UNIQUE INDEX one_open ON t (name) WHERE n = 1",
        "CREATE TRIGGER never_deleted BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'kept'); END",
    ):
        connection.exec_driver_sql(statement)

    def schema():
        rows = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE sql NOT NULL")
        return " ".join(row[0] for row in rows)

    words = ("TRIGGER", "AUTOINCREMENT", "NOCASE", "CONSTRAINT positive", "INDEX one_open")
    before = schema()
    with Operations(MigrationContext.configure(connection)).batch_alter_table("t") as batch:
        batch.alter_column("n", existing_type=sa.Integer(), nullable=False)
    gone = [word for word in words if word not in schema()]
print("alembic", alembic.__version__, "SQLAlchemy", sa.__version__)
print("expected: nothing is gone after t.n became NOT NULL")
print("gone:    ", gone)
sys.exit(0 if all(word in before for word in words) and gone == list(words[:3]) else 1)
EOF
