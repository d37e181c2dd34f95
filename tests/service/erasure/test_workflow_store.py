"""The file of durable execution: somebody who reads it for long keeps nobody from writing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from dbos import DBOS

from service.settings import Settings
from service.store.engine import make_fit
from service.worker import launch


@DBOS.workflow()
def count_to_three() -> int:
    """A workflow whose every step is committed."""
    return sum(one(i) for i in range(3))


@DBOS.step()
def one(_number: int) -> int:
    """A step."""
    return 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """The file, as an earlier version left it, in use by DBOS."""
    path = tmp_path / "workflows.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE earlier (x)")
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    launch(Settings(home=tmp_path))
    yield path
    DBOS.destroy(workflow_completion_timeout_sec=0)


@pytest.mark.timeout(120)
def test_steps_commit_beside_a_backup_that_reads_for_long(store: Path) -> None:
    with closing(sqlite3.connect(store)) as backup:
        backup.execute("BEGIN")
        before = backup.execute("SELECT count(*) FROM workflow_status").fetchone()
        assert DBOS.start_workflow(count_to_three).get_result() == 3
        assert backup.execute("SELECT count(*) FROM workflow_status").fetchone() == before
    with closing(sqlite3.connect(store)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_only_files_of_sqlite_are_touched(tmp_path: Path) -> None:
    make_fit("sqlite://", "")
    make_fit(f"sqlite:///{tmp_path}/a.db", "")
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
