"""Backups and restores that are killed around an erasure.

A backup that dies leaves a copy of people in the home, which the next erasure must find. A restore that dies is
repeated, and what the newer records say of people who were erased since holds in what it restores.
"""

from __future__ import annotations

import shutil
import signal
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

from service.launch import environment
from tests.faults.bench import Bench
from tests.faults.watch import found_in


def backup_killed(bench: Bench, point: str) -> None:
    """`expunge backup` dies at the point, then somebody is erased, then a backup is whole."""
    folder = bench.settings.home.parent / "backups"
    _dies(bench, point, "backup", str(folder / "backup.tar"))
    bench.complete(bench.file(bench.next_person()), most_approvals=0)  # what is left in the home is searched
    bench.stop_worker()
    _ends(bench, "backup", str(folder / "backup.tar"))
    _ends(bench, "restore", "--check", str(folder / "backup.tar"))
    if len(list(folder.iterdir())) != 1:
        bench.tally.violations.append(f"what a backup left at {point} is there after a whole one")
    shutil.rmtree(folder)


def restore_killed(bench: Bench, point: str) -> None:
    """Somebody is erased after a backup, whose restore dies at the point and is repeated; there they are erased too."""
    folder = bench.settings.home.parent
    file, home = folder / "backup.tar", folder / "restored"
    _ends(bench, "backup", str(file))
    person = bench.next_person()
    bench.complete(bench.file(person), most_approvals=0)
    bench.stop_worker()
    words = ("restore", str(file), "--erased-since", str(bench.settings.home))
    _dies(bench, point, *words, home=home)
    _ends(bench, *words, home=home)
    worker = _start(bench, "worker", home=home)
    bench.until(lambda: _is_all_completed(home), "the restored service to erase whom the first one erased")
    bench.zygote.stop(worker)
    held = found_in([home], [person])
    bench.tally.violations += [f"{what} after a restore that died at {point}" for what in held]
    shutil.rmtree(home)
    file.unlink()


def _dies(bench: Bench, point: str, *words: str, home: Path | None = None) -> None:
    command = _start(bench, *words, home=home, fail_at=point)
    bench.until(partial(bench.has_ended, command), f"the command to die at {point}")
    if bench.zygote.status(command) != -signal.SIGKILL:
        bench.tally.violations.append(f"the command never passed {point}")
    bench.tally.kills[f"command at {point}"] += 1


def _ends(bench: Bench, *words: str, home: Path | None = None) -> None:
    command = _start(bench, *words, home=home)
    bench.until(partial(bench.has_ended, command), f"expunge {words[0]} to end")
    assert bench.zygote.status(command) == 0, f"expunge {words[0]} ended with {bench.zygote.status(command)}"


def _start(bench: Bench, *words: str, home: Path | None, fail_at: str = "") -> int:
    """A command on the bench's home or on another one."""
    given = environment(bench.settings) | ({"EXPUNGE_HOME": str(home)} if home is not None else {})
    given.pop("EXPUNGE_FAIL_AT", None)
    if fail_at:
        ((home or bench.settings.home) / f"failed-at-{fail_at}").unlink(missing_ok=True)
        given["EXPUNGE_FAIL_AT"] = fail_at
    return bench.zygote.start(given, bench.settings.home / "logs" / "commands.log", words)


def _is_all_completed(home: Path) -> bool:
    with closing(sqlite3.connect(home / "expunge.db")) as database:
        states = [state for (state,) in database.execute("SELECT state FROM erasure_requests")]
    runs = home / "runs"
    return all(state == "completed" for state in states) and not (runs.exists() and any(runs.iterdir()))
