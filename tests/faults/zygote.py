"""Workers in a moment: a process that has imported everything and forks one worker after another.

A worker is a process of its own that runs what `expunge worker` runs; only the imports (seconds) are not repeated,
which makes hundreds of kills affordable. The parent must stay without threads, so it is a program that takes lines of
JSON: `{"start": {…environment…}, "log": "…"}` answers a process id, `{"status": pid}` an exit status or null. With
`"command": ["train", …]` it is not a worker but that command of `expunge`, and with `"program": "import …"` that
program, with the command's words as its arguments. `"errors"` is a log of its own for what goes to standard error.

`FAULTS_…` variables of a child: `CLOCK`, the file of its wall clock's shift; `HOST`, the name of the machine it
believes to be on (a UTS namespace of its own, which needs root). `FAULTS_ATTEMPTS` of the zygote itself is how often a
failed step is tried at most, so that what takes hours by the product's patience is seen in a moment.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from tests.waiting import PATIENCE_SECONDS, line_of


class Zygote:
    """The parent of workers, seen from the test."""

    def __init__(self, attempts: int | None = None) -> None:
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **quiet, "FAULTS_ATTEMPTS": str(attempts or "")}, start_new_session=True,
        )  # fmt: skip
        self._started: list[int] = []

    def start(
        self, environment: dict[str, str], log: Path, command: Sequence[str] = (), program: str = "",
        errors: Path | None = None,
    ) -> int:  # fmt: skip
        """Start a worker, or a command of `expunge`, or a program; gives its process id."""
        question = {"log": str(log), "errors": str(errors or log), "command": list(command), "program": program}
        pid = self._ask({"start": environment, **question})
        assert isinstance(pid, int)
        self._started.append(pid)
        return pid

    def status(self, pid: int) -> int | None:
        """Exit status of a worker, -9 after SIGKILL; none while it runs."""
        return self._ask({"status": pid})

    def wait(self, pid: int, seconds: float) -> int | None:
        """Its exit status as soon as it ended; none after so many seconds."""
        deadline = time.monotonic() + seconds
        while (ended := self.status(pid)) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return ended

    def run(self, command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """A command of `expunge` to its end, and what it wrote."""
        with TemporaryDirectory() as folder:
            output, errors = Path(folder, "output"), Path(folder, "errors")
            status = self.wait(self.start(environment, output, command, errors=errors), PATIENCE_SECONDS)
            assert status is not None
            return subprocess.CompletedProcess(command, status, output.read_text(), errors.read_text())

    def stop(self, pid: int, seconds: float = 20.0) -> int:
        """End a worker politely, then not; gives its exit status."""
        if (ended := self.status(pid)) is not None:
            return ended
        os.kill(pid, signal.SIGTERM)
        if (ended := self.wait(pid, seconds)) is not None:
            return ended
        os.kill(pid, signal.SIGKILL)
        ended = self.wait(pid, seconds)
        assert ended is not None
        return ended

    def __enter__(self) -> Zygote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._started:
            self.stop(pid)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.kill()  # it has no children any more, and nothing to say
        self._process.wait(PATIENCE_SECONDS)
        self._process.stdout.close()

    def _ask(self, question: dict[str, object]) -> int | None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: int | None = json.loads(line_of(self._process))
        return answer


class Forked:
    """A program that a zygote runs, as `subprocess.Popen` shows one: `python -c PROGRAM` without its imports."""

    def __init__(
        self, zygote: Zygote, program: str, environment: dict[str, str], log: Path, command: Sequence[str] = ()
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._zygote = zygote
        self.pid = zygote.start(environment, log, command, program)

    def poll(self) -> int | None:
        """Its exit status; none while it runs."""
        return self._zygote.status(self.pid)

    def wait(self, seconds: float) -> int | None:
        """Its exit status as soon as it ended; none after so many seconds."""
        return self._zygote.wait(self.pid, seconds)

    def kill(self) -> None:
        """SIGKILL, unless it ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _become(environment: dict[str, str], log: str, errors: str, command: Sequence[str], program: str) -> None:
    from audit.policy import load_policy
    from service.settings import Settings
    from service.telemetry.logs import set_up_logs
    from service.worker import run_worker

    output, error = (os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for path in (log, errors))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((nothing, 0), (output, 1), (error, 2)):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(environment)
    if host := environment.get("FAULTS_HOST"):
        _move_to(host)
    if command or program:
        sys.argv = ["expunge", *command]
        exec(program or "from service import cli; cli.main()", {"__name__": "__main__"})  # noqa: S102
        return
    settings = Settings()
    set_up_logs(settings.log_format)
    clock = Path(os.environ["FAULTS_CLOCK"])
    run_worker(settings, load_policy(settings.policy), now=lambda: datetime.now(UTC) + _shift(clock))


def _move_to(host: str) -> None:
    """Give this process a machine's name of its own."""
    import socket

    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(0x04000000):  # CLONE_NEWUTS
        raise OSError(ctypes.get_errno(), "Expected the right to a host name of one's own")
    socket.sethostname(host)


def _shift(clock: Path) -> timedelta:
    """How far this worker's wall clock is off, in seconds in a file that a test may change at any time."""
    try:
        return timedelta(seconds=float(clock.read_text()))
    except (FileNotFoundError, ValueError):
        return timedelta(0)


def _be_impatient(attempts: int) -> None:
    """Steps that failed are tried so often at most, a moment apart: applied where DBOS takes the step's options."""
    from dbos import DBOS

    step = DBOS.step

    def impatient(**options: object) -> object:
        if options.get("retries_allowed"):
            options |= {"max_attempts": attempts, "interval_seconds": 0.05}
        return step(**options)  # type: ignore[arg-type]

    DBOS.step = impatient  # type: ignore[method-assign,assignment]


def main() -> None:
    """Answer one line after another until the input ends."""
    if attempts := os.environ.pop("FAULTS_ATTEMPTS", ""):
        _be_impatient(int(attempts))
    import torch

    import service.erasure.pipeline
    import service.worker  # noqa: F401  (imported for the forks)

    torch.set_num_threads(1)
    ended: dict[int, int] = {}
    for line in sys.stdin:
        question = json.loads(line)
        answer: int | None
        if "start" in question:
            answer = os.fork()
            if answer == 0:
                status = 1
                try:
                    _become(
                        question["start"], question["log"], question["errors"], question["command"], question["program"]
                    )
                    status = 0
                except SystemExit as error:
                    status = int(error.code or 0) if not isinstance(error.code, str) else 1
                except BaseException:
                    import traceback

                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
        else:
            pid = question["status"]
            if pid not in ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer = ended.get(pid)
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
