"""A real PgBouncer between the service and a real PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.context import Context
from service.errors import StartupError
from service.launch import environment, free_ports
from service.settings import Settings
from service.worker import launch
from tests.postgres import PostgresServer
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.pgbouncer


@pytest.fixture
def pooled(postgres: PostgresServer) -> Iterator[Callable[..., str]]:
    """`pooled("transaction")`: URL of a new, empty database behind a pool of that mode."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("Needs pgbouncer: run apt-get install pgbouncer.")
    started: list[subprocess.Popen[bytes]] = []
    databases: list[str] = []
    place = tempfile.TemporaryDirectory(prefix="expunge-pgbouncer-")

    def start(mode: str, **more: str) -> str:
        url, (port,) = sa.make_url(postgres.create_database()), free_ports(1)
        databases.append(url.render_as_string(hide_password=False))
        folder = Path(
            place.name
        )  # not below pytest's own, which nobody else may read: PgBouncer refuses to run as root
        folder.chmod(0o755)
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n{url.database} = host={url.host} port={url.port} dbname={url.database} user={url.username}"
            f" password={url.password}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {mode}\nignore_startup_parameters = extra_float_digits\n"
            + "".join(f"{name} = {value}\n" for name, value in more.items())
        )
        (folder / "pgbouncer.ini").chmod(0o644)
        user = {"user": pwd.getpwnam("nobody").pw_uid} if os.getuid() == 0 else {}
        started.append(subprocess.Popen([program, folder / "pgbouncer.ini"], cwd="/", **user))

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(lambda: listens() or started[-1].poll() is not None, "PgBouncer to listen")
        assert started[-1].poll() is None
        return url.set(port=port).render_as_string(hide_password=False)

    yield start
    for process in started:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
    place.cleanup()
    for each in databases:
        postgres.drop_database(each)


@pytest.mark.parametrize("round_robin", ["0", "1"])
def test_pools_that_change_connections_between_transactions_are_refused(
    pooled: Callable[..., str], tmp_path: Path, round_robin: str
) -> None:
    url = pooled("transaction", server_round_robin=round_robin)
    with pytest.raises(StartupError, match=r"pool_mode = session") as refused:
        Context.open(Settings(home=tmp_path / "home", database_url=url))
    assert "EXPUNGE_DATABASE_URL" in refused.value.detail
    assert str(sa.make_url(url).password) not in refused.value.detail
    settings = Settings(home=tmp_path / "home", workflow_database_url=url, console_port=0)
    with pytest.raises(StartupError, match="EXPUNGE_WORKFLOW_DATABASE_URL"):
        launch(settings)
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "worker"], env=environment(settings), capture_output=True, text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Expected EXPUNGE_WORKFLOW_DATABASE_URL to lead to PostgreSQL" in done.stderr.replace("\n", " ")


def test_pools_of_sessions_are_as_good_as_none(pooled: Callable[..., str], tmp_path: Path) -> None:
    context = Context.open(Settings(home=tmp_path / "home", database_url=pooled("session")))
    with context.engine.connect() as connection:
        assert connection.execute(sa.text("SHOW synchronous_commit")).scalar() == "on"
    context.engine.dispose()
