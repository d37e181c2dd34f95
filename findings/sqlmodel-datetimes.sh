#!/usr/bin/env bash
# A field of type `datetime` of an SQLModel table refuses naive values when it is written, and comes back from SQLite
# in UTC with its time zone.
# What one expects: as in SQLAlchemy and earlier releases: any datetime is taken, and SQLite gives it back naive.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  sqlmodel==0.0.50 || exit 2
venv/bin/python - <<'EOF'
import datetime as dt
import importlib.metadata
import sys

import sqlalchemy as sa
from sqlmodel import Field, Session, SQLModel, create_engine


class Event(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    at: dt.datetime


engine = create_engine("sqlite://", poolclass=sa.StaticPool)
SQLModel.metadata.create_all(engine)


def back(value):
    with Session(engine) as session:
        event = Event(at=value)
        session.add(event)
        try:
            session.commit()
        except sa.exc.StatementError as error:
            return f"refused: {error.orig}"[:50]
        session.refresh(event)
        return event.at.isoformat()


naive = back(dt.datetime(2030, 1, 1, 12))
aware = back(dt.datetime(2030, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=5))))
print("sqlmodel", importlib.metadata.version("sqlmodel"))
print("expected: 2030-01-01T12:00:00 for a naive value, and the same for one of UTC+5")
print(f"found:    naive {naive}; UTC+5 {aware}")
sys.exit(0 if naive.startswith("refused") and aware == "2030-01-01T07:00:00+00:00" else 1)
EOF
