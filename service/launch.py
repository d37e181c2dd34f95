"""The processes of a service, serving and worker: their command lines and environments, their start and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

from service.errors import StartupError
from service.listening import address_to_listen_on
from service.settings import Settings

_KEEP_ALIVE_SECONDS = 75  # longer than clients and proxies keep idle connections, so that they close them, not we
_GRACE_SECONDS = 20


def require_temporary_folder() -> None:
    """Nothing, if the system has a folder for temporary files, which BentoML and other libraries need.

    Raises:
        StartupError: it has none that can be written to.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise StartupError(
            "Expected a folder for temporary files, found none that can be written to. Where the root is read-only, "
            "mount an empty folder at /tmp, or name one in TMPDIR."
        ) from None


def serve_command(settings: Settings) -> tuple[list[str], dict[str, str]]:
    """Arguments and whole environment of the serving processes' parent.

    BentoML gets a home within ours: at its start it wipes the metrics of every server that shares its home.

    Raises:
        StartupError: `EXPUNGE_HOST` is no address and no name of one.
    """
    root = Path(__file__).resolve().parent.parent
    home = settings.home.resolve()
    arguments = [
        sys.executable, "-m", "bentoml", "serve", "service.app:Expunge",
        "--working-dir", str(root),
        "--host", address_to_listen_on(settings),
        "--port", str(settings.port),
        "--timeout-keep-alive", str(_KEEP_ALIVE_SECONDS),
        "--timeout-graceful-shutdown", str(_GRACE_SECONDS),
    ]  # fmt: skip
    environment = {
        **inherited(settings),
        "EXPUNGE_HOME": str(home),
        "BENTOML_HOME": str(settings.local_folder.resolve() / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "OMP_NUM_THREADS": "1",
        "FORWARDED_ALLOW_IPS": settings.trusted_proxies,  # uvicorn would believe every process of this machine
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)  # of another server
    return arguments, environment


def inherited(settings: Settings) -> dict[str, str]:
    """This process's environment with the settings in the place of every `EXPUNGE_…` variable.

    One that stayed would hold in the child wherever the settings say nothing.
    """
    others = {name: value for name, value in os.environ.items() if not name.upper().startswith("EXPUNGE_")}
    values = settings.model_dump().items()
    given = {f"EXPUNGE_{name.upper()}": str(value) for name, value in values if value not in ("", None)}
    return {**others, **given}


def environment(settings: Settings) -> dict[str, str]:
    """Environment that gives a child process the same settings."""
    return {**inherited(settings), "BENTOML_DO_NOT_TRACK": "True", "PYTHONUNBUFFERED": "1"}


def worker_command() -> list[str]:
    """Command line of the worker."""
    return [sys.executable, "-m", "service.cli", "worker"]


class Processes:
    """Serving process and worker as children in sessions of their own, logging to files in the home.

    Leaving the block stops what was started: SIGTERM, then after `patience_seconds` SIGKILL, the whole session.
    """

    def __init__(self, settings: Settings, patience_seconds: float = 30.0) -> None:
        self.settings = settings
        self.logs = settings.home / "logs"
        self.patience_seconds = patience_seconds
        self._started: list[subprocess.Popen[bytes]] = []
        self.serving: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Processes:
        require_temporary_folder()
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._started):
            stop(process, self.patience_seconds)

    def start_serving(self) -> None:
        """Start the serving process; `wait_until` tells when it is ready."""
        command, env = serve_command(self.settings)
        self.serving = self._start(command, env, "serving.log")

    def start_worker(self, **overrides: str) -> None:
        """Start the worker; `overrides` are further environment variables."""
        self.worker = self._start(worker_command(), {**environment(self.settings), **overrides}, "worker.log")

    def _start(self, command: list[str], env: dict[str, str], log: str) -> subprocess.Popen[bytes]:
        with (self.logs / log).open("ab") as file:
            process = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
        self._started.append(process)
        return process

    def check(self) -> None:
        """Complain if a started process ended.

        Raises:
            StartupError: with the last lines of its log.
        """
        for name, process in (("serving", self.serving), ("worker", self.worker)):
            if process is not None and process.poll() is not None:
                log = self.logs / f"{name}.log"
                last = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise StartupError(
                    f"The {name} process ended with status {process.returncode}. Its log {log} ends:\n"
                    + "\n".join(last)
                )

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait for a condition while both processes live.

        Raises:
            StartupError: a process ended, or the time is over.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise StartupError(f"Expected {what} within {seconds:.0f} s; see the logs in {self.logs}.")
            time.sleep(0.1)


def stop(process: subprocess.Popen[bytes], patience_seconds: float) -> None:
    """End a child, its session, and what it started in others, as BentoML does: politely, then not."""
    started: list[psutil.Process] = []
    if process.poll() is None:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind, and itself if it would not go
    for left in started:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    process.wait()


_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 10_081  # browsers refuse 10080, the last of theirs


def free_ports(n: int) -> list[int]:
    """Ports nobody listens on just now, and none that the system itself may give to an outgoing connection before
    whoever asked listens on it.
    """
    import random
    import socket

    end = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else 32_768
    found: set[int] = set()
    while len(found) < n:
        port = random.SystemRandom().randrange(_FIRST_PORT, end) if end > _FIRST_PORT else 0
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            found.add(int(s.getsockname()[1]))
    return list(found)
