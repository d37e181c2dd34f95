"""A database of yesterday put back: of the requests, of the workflows, or both, from before an erasure ended.

The images and the old weights are gone; yesterday's rows say that they are there. What can be promised then: no
certificate says of a person what is not so (that nothing was held, or fewer images than there were), no request is
completed with `no_data_held`, and no weights answer but the certified ones. A purge that had begun is resumed, for its
row has what it is to destroy: its certificate may be issued again if it says what the first one said. The tombstones
of the time between are gone with the rows, so the copy must not be used without those who know the requests since
(docs/durability.md).
"""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from tests.faults.bench import Bench

POINTS: Final = ("", "unlearning.planned", "deploying.end", "purging.images", "completing.signed")
FILES: Final = (("expunge.db",), ("workflows.db",), ("expunge.db", "workflows.db"))


def copy_of(bench: Bench, folder: Path, names: Iterable[str]) -> None:
    """A consistent copy of the databases, whoever writes to them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names:
        there, copy = (sqlite3.connect(place / name) for place in (bench.settings.home, folder))
        with closing(there), closing(copy):
            there.backup(copy)


def put_back(bench: Bench, folder: Path, names: Iterable[str]) -> None:
    """Copies in the place of the databases; nobody may have them open."""
    for name in names:
        for end in ("", "-wal", "-shm"):
            (bench.settings.home / f"{name}{end}").unlink(missing_ok=True)
        shutil.copyfile(folder / name, bench.settings.home / name)


def certificates_of(bench: Bench) -> dict[str, dict[str, Any]]:
    """Predicates of all certificates in the database as it lies there, by id."""
    with closing(sqlite3.connect(bench.settings.home / "expunge.db")) as database:
        rows = database.execute("SELECT id, envelope FROM certificates").fetchall()
    return {
        name: json.loads(base64.b64decode(json.loads(text)["envelope"]["payload"]))["predicate"] for name, text in rows
    }


def _without_times(predicate: dict[str, Any]) -> dict[str, Any]:
    """What a certificate says, but for when it was signed and when the purge was done."""
    purge = {name: value for name, value in (predicate["purge"] or {}).items() if name != "finished_at"}
    return {name: value for name, value in predicate.items() if name != "issued_at"} | {"purge": purge}


def yesterday_put_back(bench: Bench, point: str, names: tuple[str, ...], seconds: float = 8.0) -> None:
    """Databases as they were at the point are put back after the erasure ended; later those of today again."""
    folder, both = bench.settings.home.parent, FILES[-1]
    person = bench.next_person()
    if not point:
        copy_of(bench, folder / "yesterday", both)
    request_ids = bench.file(person)
    if point:
        if not bench.die_at(point, request_ids):
            bench.tally.violations.append(f"the run never passed {point}")
        copy_of(bench, folder / "yesterday", both)
    bench.finish(request_ids)
    issued = certificates_of(bench)
    bench.stop_all()
    copy_of(bench, folder / "today", both)
    put_back(bench, folder / "yesterday", names)
    bench.tally.kills[f"yesterday's {' and '.join(names)}"] += 1
    bench.processes.start_serving()
    bench.start_worker()
    try:
        bench.pass_time(seconds)
        if not point and "expunge.db" in names:  # whose pointer is at weights that learned from the person
            bench.try_to_file(person)
            bench.pass_time(seconds)
    finally:
        bench.stop_all()
    when = f"after yesterday's {' and '.join(names)} (of {point or 'before the request'}) came back"
    said = [_without_times(predicate) for predicate in issued.values()]
    answered = {predicate["request_id"] for predicate in issued.values()} - {None}
    for name, predicate in certificates_of(bench).items():
        if name not in issued and _without_times(predicate) not in said:
            of = "a request that had another one" if predicate["request_id"] in answered else "another request"
            what = f"a certificate was issued {when} with the verdict {predicate['verdict']}, of {of}"
            bench.tally.violations.append(what)
    with closing(sqlite3.connect(bench.settings.home / "expunge.db")) as database:
        query = "SELECT count(*) FROM erasure_requests WHERE state='completed' AND outcome='no_data_held'"
        if database.execute(query).fetchone()[0]:
            bench.tally.violations.append(f"a request was completed as no_data_held {when}")
    put_back(bench, folder / "today", both)
    shutil.rmtree(bench.settings.runs_folder, ignore_errors=True)  # of runs that are open in yesterday's rows alone
    bench.processes.start_serving()
    bench.wait_serving()
    bench.finish(request_ids)
    bench.stop_worker()
