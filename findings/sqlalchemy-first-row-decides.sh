#!/usr/bin/env bash
# An insert of a list of dictionaries takes its columns from the first one: values under names that the first has not
# are dropped, without a word. (A name that only the first has is an error.)
# What one expects: all values are written, or names that differ are an error.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  SQLAlchemy==2.1.9 || exit 2
venv/bin/python - <<'EOF'
import sys

import sqlalchemy as sa

metadata = sa.MetaData()
table = sa.Table("subject", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("hold", sa.String))
engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
metadata.create_all(engine)
with engine.begin() as connection:
    connection.execute(table.insert(), [{"id": 1}, {"id": 2, "hold": "legal"}])
    found = [tuple(row) for row in connection.execute(sa.select(table))]
    try:
        connection.execute(table.insert(), [{"id": 3, "hold": "legal"}, {"id": 4}])
        other_way = "accepted"
    except sa.exc.StatementError:
        other_way = "refused"
print("SQLAlchemy", sa.__version__)
print("expected: [(1, None), (2, 'legal')], or an error")
print("found:   ", found, "; with the longer one first:", other_way)
sys.exit(0 if found == [(1, None), (2, None)] and other_way == "refused" else 1)
EOF
