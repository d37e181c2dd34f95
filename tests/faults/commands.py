"""Packing killed in the middle, and studies that run beside a purge.

What killed packing leaves holds pixels; the next erasure must destroy it (commands that die at named points:
`scenarios.left_behind`). A study that reads data while a purge destroys them may only refuse or give what it would have
given on data that hold still.
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from service.banks.file_format import Manifest, decode_row
from service.banks.store import BankStore
from service.launch import environment
from service.settings import Settings
from tests.faults.bench import Bench
from tests.faults.restores import copy_of

STUDIES: Final = ("references build", "evaluate")
POINTS: Final = ("deploying.end", "purging.start", "purging.overwritten", "purging.images")


def packing_killed(bench: Bench, n_kills: int) -> None:
    """Packing dies several times at times drawn evenly; then a person is erased, and nothing of it is left."""
    for _ in range(n_kills):
        shutil.rmtree(bench.settings.packed_folder, ignore_errors=True)  # so that the command packs anew
        command = bench.start_command("references", "status")  # packs, and does nothing else that takes time
        bench.pass_time(bench.rng.uniform(0.0, 0.4), partial(bench.has_ended, command))
        with suppress(ProcessLookupError):
            os.kill(command, signal.SIGKILL)
        bench.zygote.wait(command, 20)
        bench.tally.kills["packing"] += 1
    request_ids = bench.file(bench.next_person())
    bench.complete(request_ids, most_approvals=0)
    bench.stop_worker()


def study_words(what: str, user_id: str, out: Path) -> tuple[str, ...]:
    """A study that takes some seconds."""
    if what == "references build":
        return ("references", "build")
    sizes = ("--n-models", "8", "--experiments", "2")
    return ("evaluate", "finetune", "--person", user_id, *sizes, "--out", str(out))


def study_beside_purge(bench: Bench, what: str, point: str) -> None:
    """A study begins while a worker is dead at the point, and goes on while another destroys the data it reads."""
    request_ids, other = bench.file(bench.next_person()), bench.people_left()[0]
    shadow, out = _copy(bench), bench.settings.home.parent / "tmp" / "evaluation"
    if not bench.die_at(point, request_ids):
        bench.tally.violations.append(f"the run never passed {point}")
    study = bench.start_command(*study_words(what, other, out))
    bench.pass_time(bench.rng.uniform(0.2, 2.0), partial(bench.has_ended, study))
    bench.tally.kills[f"expunge {what} beside a purge"] += 1
    bench.complete(request_ids, most_approvals=0)
    bench.until(partial(bench.has_ended, study), f"expunge {what} to end")
    if (status := bench.zygote.status(study)) not in (0, 1):
        bench.tally.violations.append(f"expunge {what} beside a purge ended with status {status}")
    shutil.rmtree(out, ignore_errors=True)
    bench.tally.violations += [f"{found} after a study beside the purge" for found in bench.left_of(bench.erased)]
    bench.tally.violations += _compare(bench, shadow, what, other)
    shutil.rmtree(shadow)
    bench.stop_worker()


def _copy(bench: Bench) -> Path:
    """The home as it is, for the same study on data that hold still: outside of what is searched."""
    shadow, settings = bench.settings.home.parent / "shadow", bench.settings
    copy_of(bench, shadow, ("expunge.db",))
    for name in ("data", "keys", "models"):
        shutil.copytree(settings.home / name, shadow / name, ignore=shutil.ignore_patterns(".packed"))
    if (settings.banks_folder / "blocks.json").exists():
        (shadow / "banks").mkdir()
        shutil.copyfile(settings.banks_folder / "blocks.json", shadow / "banks" / "blocks.json")
    return shadow


def _compare(bench: Bench, shadow: Path, what: str, other: str) -> list[str]:
    """Rows of banks of the same key here and in the copy, where the same study runs undisturbed: they must be equal."""
    settings = Settings.model_validate({**bench.settings.model_dump(), "home": shadow})
    log = bench.settings.home.parent / "shadow.log"
    command = bench.zygote.start(environment(settings), log, study_words(what, other, shadow / "evaluation"))
    bench.until(partial(bench.has_ended, command), "the same study on the copy to end")
    if bench.zygote.status(command):
        return [f"expunge {what} failed on data that held still: {log.read_text()[-300:]}"]
    mine, theirs = (_rows(each) for each in (bench.settings, settings))
    both = mine.keys() & theirs.keys()
    different = sum(not _equal(mine[key], theirs[key]) for key in both)
    return [f"{different} of {len(both)} rows of banks differ from those of data that held still"] if different else []


def _rows(settings: Settings) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Every whole row of every bank: figures and margins by example."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    stores = [settings.banks_folder, *(path for path in settings.evaluations_folder.glob("*") if path.is_dir())]
    for store in map(BankStore, stores):
        for path in store.folder.glob("*/manifest"):
            manifest = Manifest.decode(path.read_bytes())
            for file in path.parent.glob("*/*.row") if manifest else ():
                row = decode_row(file.read_bytes(), manifest) if manifest else None
                if row is not None:
                    figures = {"retain": row.retain_accuracy, "test": row.test_accuracy}
                    margins = dict(zip(row.example_ids, row.margins.T.tolist(), strict=True))
                    found[store.folder.name, path.parent.name, row.seed] = figures | margins
    return found


def _equal(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether what both have is the same number."""
    return all(np.array_equal(mine[name], theirs[name]) for name in mine.keys() & theirs.keys())
