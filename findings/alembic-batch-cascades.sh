#!/usr/bin/env bash
# On SQLite with foreign keys on, changing a column by batch_alter_table deletes the rows of other tables that refer
# to this one ON DELETE CASCADE: the old table is dropped, which SQLite counts as deleting its rows. PRAGMA
# foreign_keys=OFF within the migration's transaction does nothing.
# What one expects: a copy of the table under the same name changes the column and no other table.
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


def left(switch_off):
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    raw = engine.raw_connection()
    raw.driver_connection.isolation_level = None
    raw.driver_connection.executescript("""
        PRAGMA foreign_keys=ON;
        CREATE TABLE subject (id INTEGER PRIMARY KEY, name TEXT);
        CREATE TABLE image (id INTEGER PRIMARY KEY, of INTEGER REFERENCES subject(id) ON DELETE CASCADE);
        INSERT INTO subject VALUES (1, 'a');
        INSERT INTO image VALUES (1, 1), (2, 1);
    """)
    raw.close()
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        if switch_off:
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        with Operations(MigrationContext.configure(connection)).batch_alter_table("subject") as batch:
            batch.alter_column("name", existing_type=sa.Text(), nullable=False)
        connection.exec_driver_sql("COMMIT")
        return connection.exec_driver_sql("SELECT count(*) FROM image").scalar()


print("alembic", alembic.__version__, "SQLAlchemy", sa.__version__)
print("expected: both images are left after subject.name became NOT NULL")
plain, off = left(False), left(True)
print(f"found:    {plain} left; {off} with PRAGMA foreign_keys=OFF in the transaction")
sys.exit(0 if plain == off == 0 else 1)
EOF
