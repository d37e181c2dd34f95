"""A process that trains for another one, and a second that does the work below it. Loads no torch.

The first looks after the second: it pauses it for predictions, and kills it if it came to nothing because it went last
in the line for the processor. The second ends with the first, also while it is paused: the kernel sees to that
whoever is killed, so nothing stays stopped. The first ends when the process that asked for it is gone.

Tested in `tests/service/training/test_jobs.py`.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import lru_cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from joblib.externals.loky.process_executor import TerminatedWorkerError

from service.settings import Settings
from service.store.felt import Board
from service.training.governor import LOWEST, TICK_SECONDS, yields

_LOOK_SECONDS = 0.5
_HURRY_SECONDS = 5.0  # before what goes last is begun anew
_PDEATHSIG = 1  # of prctl
_CAN_PAUSE = sys.platform == "linux"  # elsewhere nobody would end a stopped process
_WELL, _ILL = b"+", b"-"  # before an answer: a result, or an error
_READY = b"!"  # before the first answer


class _Below:
    """The second process.

    Attributes:
        goes_last: for good: an ordinary user may not take that back.
    """

    def __init__(self) -> None:
        self.goes_last = False
        self._is_ready = False  # it ends with this process, also from a pause; before that it must not be paused
        self._calls, theirs = Pipe()
        command = [sys.executable, "-c", _SERVE, str(theirs.fileno()), str(os.getpid()), *sys.path]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()

    def call(self, packed: bytes, board: Board, *, stands_back: bool, last: bool) -> bytes | None:
        """The answer, with pauses while it works; none if it goes last and there is a hurry.

        Raises:
            TerminatedWorkerError: the process ended.
        """
        self.goes_last |= last
        calm_at, is_paused = time.monotonic(), False
        try:
            self._calls.send_bytes(pickle.dumps((packed, last)))
            while True:
                if self._calls.poll(TICK_SECONDS):
                    said = self._calls.recv_bytes()
                    if said != _READY:
                        return said
                    self._is_ready = True
                now = time.monotonic()
                pauses = stands_back and _CAN_PAUSE and self._is_ready and board.period.pause_left(now) > 0
                if pauses or is_paused:  # again and again: somebody may have let it go on
                    is_paused = pauses
                    self._process.send_signal(signal.SIGSTOP if pauses else signal.SIGCONT)
                if not board.is_in_hurry(now):
                    calm_at = now
                elif last and now - calm_at > _HURRY_SECONDS:
                    return None
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_LOOK_SECONDS)
            raise TerminatedWorkerError(
                f"A training process ended with status {self._process.poll()}; was it killed, for memory?"
            ) from None
        finally:
            if is_paused:
                self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        self._calls.close()


_SERVE = """
import os, sys
os.environ["OMP_NUM_THREADS"] = "1"
sys.path[:] = sys.argv[3:]
from service.training.child import serve
serve(int(sys.argv[1]), int(sys.argv[2]))
"""
_kept: list[_Below] = []


def in_child(packed: bytes, parent: int, settings: Settings) -> bytes:
    """What a packed function gives for its packed arguments, packed.

    Raises:
        TerminatedWorkerError: the process that did it ended.
    """
    _prepare_process(parent)
    board = _board(settings.training_board_path)
    stands_back = yields(settings)  # asked for each call: serving may have begun since the last one
    last = stands_back and not board.is_in_hurry(time.monotonic())
    answer = None
    while answer is None:
        if _kept and _kept[0].goes_last and not last:
            _kept.pop().kill()
        if not _kept:
            _kept.append(_Below())
        try:
            answer = _kept[0].call(packed, board, stands_back=stands_back, last=last)
        except TerminatedWorkerError:
            _kept.pop().kill()
            raise
        last = False
    came_well, found = answer[:1] == _WELL, answer[1:]
    if came_well:
        return found
    raise pickle.loads(found)  # noqa: S301


def processes_below() -> list[psutil.Process]:
    """The second processes of all that do work for this one."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "popen_loky" in " ".join(child.cmdline()):
                found += child.children()
    return found


def wait_for_end(processes: list[psutil.Process]) -> None:
    """Until processes that were killed are gone: what goes last needs the processor to end, too."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            while each.is_running() and each.status() != psutil.STATUS_ZOMBIE:
                time.sleep(TICK_SECONDS)


def serve(descriptor: int, first: int) -> None:
    """The second process: answers calls until the first ends, and ends with it, whatever it is at."""
    if _CAN_PAUSE:
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _prepare_process(first)  # elsewhere, and if the first has ended by now
    calls = Connection(descriptor)
    with suppress(EOFError, BrokenPipeError):  # the first has ended
        calls.send_bytes(_READY)
        while True:
            packed, last = pickle.loads(calls.recv_bytes())  # noqa: S301
            weigh_session(least=last)
            if last:
                _go_last()
            calls.send_bytes(_answer(packed))


def _answer(packed: bytes) -> bytes:
    try:
        function, arguments = pickle.loads(packed)  # noqa: S301  # only here: PyTorch takes seconds, and memory
        return _WELL + pickle.dumps(function(*arguments))
    except Exception as error:
        return _ILL + pickle.dumps(error)


@lru_cache(maxsize=1)
def _board(path: Path) -> Board:
    return Board(path)


@lru_cache(maxsize=1)
def _prepare_process(parent: int) -> None:
    """Once a process: a session of its own, and an end when the process that asked for it is gone.

    Where the kernel weighs whole sessions, one with the worker would take the worker down to the child's priority, and
    a worker that waits for the processor while it holds the database's lock stops the serving processes' heartbeats.
    """
    _lead_session()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _lead_session() -> None:
    with suppress(PermissionError):  # it leads one already
        os.setsid()


@lru_cache(maxsize=1)
def _go_last() -> None:
    """Let this process compute only while nobody else would.

    The lowest priority alone gives it little of the processor, but lets it keep what it has for some milliseconds, in
    which a request that has just come waits; `SCHED_IDLE` does not.
    """
    os.nice(LOWEST - os.nice(0))
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def weigh_session(*, least: bool) -> None:
    """Let others go first, or not, where the kernel weighs whole sessions: `nice` acts only within one."""
    autogroup = Path("/proc/self/autogroup")
    if os.getsid(0) == os.getpid() and autogroup.exists():  # only a session of our own
        with suppress(OSError):
            autogroup.write_text("19" if least else "0")
