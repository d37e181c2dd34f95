"""Processor seconds of whole trees of processes, of those that ended too, on Linux.

A process that runs says what it took (`/proc`, by psutil), and what its ended children took, once it waited for them.
A process that was started here says both at its end (`os.wait4`). One whose parent ended first is adopted by this
process (`PR_SET_CHILD_SUBREAPER`, see prctl(2)), which waits for it. So nothing is lost but a process that somebody
makes the kernel discard unseen (`SIGCHLD` ignored), which none of ours does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import psutil

_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Account:
    """What the processes started here took, with everything below them.

    Several accounts may be open in one process as long as the programs of one act at a time: a process that is found
    orphaned and was never seen before counts for the account that asks first.
    """

    _owner: ClassVar[dict[int, Account]] = {}

    def __init__(self) -> None:
        if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "Expected prctl to let this process adopt orphans")
        self._ended = 0.0
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """A program that goes on; its output is appended to a file."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        return self._note(process)

    def run(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], given: str = "") -> str:
        """What a program prints, run to its end; `given` is its standard input.

        Raises:
            RuntimeError: it ended with another status than 0; with what it printed.
        """
        process = self._note(
            subprocess.Popen(
                command, cwd=cwd, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("Expected pipes to the program.")
        process.stdin.write(given.encode())
        process.stdin.close()
        printed = process.stdout.read().decode(errors="replace")
        process.stdout.close()
        self._wait(process.pid, 0)
        del self._started[process.pid]
        while any(root.pid not in self._started for root in self._roots()):  # what it left behind ends a moment later
            time.sleep(0.05)
        if process.returncode:
            raise RuntimeError(f"Expected status 0 of {' '.join(command)}, got {process.returncode}:\n{printed}")
        return printed

    def seconds(self) -> float:
        """User and system time so far."""
        while True:
            roots = self._roots()
            tree = {pid: process for root in roots for pid, process in _below(root).items()}
            try:
                total = self._ended + sum(_taken(process) for process in tree.values())
            except psutil.NoSuchProcess:
                continue
            again = {pid for root in self._roots() for pid in _below(root)}
            for pid in again:
                Account._owner[pid] = self
            if again == set(tree):  # nobody ended meanwhile, who would count twice or not at all
                return total

    def alive(self) -> bool:
        """Whether each program that was started and not stopped still runs."""
        self._roots()
        return all(process.returncode is None for process in self._started.values())

    def stop(self, patience_seconds: float = 30.0) -> None:
        """End what runs: politely, then not."""
        for root in self._roots():
            root.terminate()
        deadline = time.monotonic() + patience_seconds
        while roots := self._roots():
            if time.monotonic() > deadline:
                for root in roots:
                    for process in _below(root).values():
                        process.send_signal(signal.SIGKILL)
            time.sleep(0.1)
        self._started.clear()

    def _note(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        Account._owner[process.pid] = self
        self._started[process.pid] = process
        return process

    def _roots(self) -> list[psutil.Process]:
        """This account's processes that are children of ours and still run; those that ended are settled."""
        found = []
        for child in psutil.Process().children():
            if Account._owner.setdefault(child.pid, self) is self and not self._wait(child.pid, os.WNOHANG):
                found.append(child)
        return found

    def _wait(self, pid: int, options: int) -> bool:
        ended, status, usage = os.wait4(pid, options)
        if not ended:
            return False
        self._ended += usage.ru_utime + usage.ru_stime
        del Account._owner[pid]
        if (process := self._started.get(pid)) is not None:
            process.returncode = os.waitstatus_to_exitcode(status)
        return True


def _below(root: psutil.Process) -> dict[int, psutil.Process]:
    """A process and its descendants, by process id."""
    try:
        return {process.pid: process for process in (root, *root.children(recursive=True))}
    except psutil.NoSuchProcess:
        return {}


def _taken(process: psutil.Process) -> float:
    """By a process and those of its children that it waited for."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
