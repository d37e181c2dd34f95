"""`expunge` that notes what it has done and can kill itself, for the test of `expunge prepare`.

Run `main` with a file to note in, the event after which to end, and the words of the command. Events are counted
from 1 in this process: `model 1` (weights are registered), `row 5` (a model is in a bank, and before that what was
looked at in it), `trial 1` (of a search), `lot 1`, `result 1`. It is killed by SIGKILL before anything that follows the
event.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from service import cli
from service.banks import qualifications
from service.banks.file_format import BESIDE
from service.banks.store import BankKey, BankStore, ReferenceRow
from service.models import registry
from service.studies import lots


def watch(owner: Any, name: str, event: str, describe: Callable[..., str], told: Callable[[str, str], None]) -> None:
    """Call the real function, then tell what it did, unless there is nothing to tell."""
    real = getattr(owner, name)

    def observed(*args: Any, **options: Any) -> Any:
        done = real(*args, **options)
        if what := describe(*args):
            told(event, what)
        return done

    setattr(owner, name, observed)


def _row(store: BankStore, key: BankKey, row: ReferenceRow) -> str:
    return "" if key.statistic in BESIDE else f"{store.folder.name} {key.digest} {row.seed}"


def main(arguments: list[str]) -> None:
    """Note in the file and end after the event that the first two arguments name; the others are the command."""
    notes, end, words = Path(arguments[0]), arguments[1], arguments[2:]
    counts: Counter[str] = Counter()

    def told(event: str, what: str) -> None:
        counts[event] += 1
        with notes.open("a") as file:
            file.write(f"{event} {what}\n")
        if f"{event} {counts[event]}" == end:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(registry, "add", "model", lambda *args: "added", told)
    watch(BankStore, "add", "row", _row, told)
    watch(optuna.Study, "optimize", "trial", lambda study, _: f"of {len(study.trials)}", told)
    watch(lots, "draw_lot", "lot", lambda _, data, number, n: f"{data[:6]} {number}", told)
    watch(qualifications, "sign_record", "result", lambda _, s, row, record: row.method, told)
    sys.argv = ["expunge", *words]
    cli.main()
