"""The barrier: from when on no process can answer with an older generation any more. Certificates cite its rows.

It rests on four facts:

1. A process has a row before it first reads the pointer, so whoever may know an older generation has a row.
2. A process acknowledges a generation when all its batches from then on use it and the last response made with an older
   one was handed to the network. It never goes back (`slot.py`).
3. A process whose lease ran out refuses to answer, also with what it computed before, until it has renewed the lease
   and then read the pointer. So a row whose lease ran out stands for a process that is fenced, frozen or unreachable,
   and never answers with old weights again.
4. A process of this machine that ended (a zombie has ended) answers nothing; the one that replaces it falls under 1.

The rule: every row with a running lease has acknowledged; and on each host with such a row, the rows that acknowledged,
are fenced or have ended are as many as the processes the service was started with, or more. No row with a running lease
at all means that nobody serves, and the barrier is reached.

What is left open: a process frozen in the microseconds between its last look at the lease and the write to the socket
sends that one response when it wakes. Leases compare the wall clocks of two machines, so rows of other hosts count as
fenced only one more lease after theirs ran out; clocks may differ by that much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlmodel import select

from service.context import LINE, Context
from service.errors import TryLaterError
from service.store.engine import reading
from service.store.process_marks import has_ended, this_host
from service.store.tables import ServingWorker

Standing = Literal["alive", "fenced", "ended"]

LOOK_SECONDS = 0.01


@dataclass(frozen=True)
class Acknowledgement:
    """One serving process at the barrier.

    Attributes:
        kind: `acknowledged`, `fenced` (its lease ran out: it refuses to answer) or `ended`.
        acknowledged_at: when its last answer of an older generation had been sent, or when it started with this one;
            none unless `acknowledged`.
        lease_until: until when it could have answered with anything older, if not `acknowledged`.
    """

    boot_id: str
    host: str
    pid: int
    kind: Literal["acknowledged", "fenced", "ended"]
    acknowledged_generation: int
    acknowledged_at: datetime | None
    lease_until: datetime


@dataclass(frozen=True)
class Barrier:
    """What the serving processes said when the last of them had left the older generations.

    Attributes:
        expected: serving processes there should be; 0 if nobody served.
        processes: their rows; those that ended or were fenced before the swap began are left out.
    """

    generation: int
    digest: str
    reached_at: datetime
    expected: int
    processes: tuple[Acknowledgement, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, times in ISO 8601."""
        values = asdict(self)
        values["reached_at"] = self.reached_at.isoformat()
        for row in values["processes"]:
            row["acknowledged_at"] = row["acknowledged_at"] and row["acknowledged_at"].isoformat()
            row["lease_until"] = row["lease_until"].isoformat()
        return values


@dataclass(frozen=True)
class Seen:
    """Rows of the serving processes at one moment and how each process stands."""

    rows: tuple[tuple[ServingWorker, Standing], ...]

    def alive(self) -> list[ServingWorker]:
        """Rows with a running lease."""
        return [row for row, standing in self.rows if standing == "alive"]

    def expected(self) -> int:
        """Processes there should be, on all hosts where one lives."""
        return sum(self._expected_by_host().values())

    def all_have(self, done: Callable[[ServingWorker], bool]) -> bool:
        """Whether every living process has done something and none is missing without account."""
        n_rows = {host: sum(row.host == host for row, _ in self.rows) for host in self._expected_by_host()}
        missing = any(n_rows[host] < expected for host, expected in self._expected_by_host().items())
        return not missing and all(done(row) for row in self.alive())

    def sentence(self) -> str:
        """The processes and where they stand, without anything personal."""
        rows = [
            f"process {row.pid} ({standing}) staged {row.staged_generation}, acknowledged {row.acknowledged_generation}"
            + (f", {row.last_error}" if row.last_error else "")
            for row, standing in self.rows
        ]
        return f"Expected processes: {self.expected()}. Seen: {'; '.join(rows) or 'none'}."

    def _expected_by_host(self) -> dict[str, int]:
        alive = self.alive()
        return {host: max(row.expected for row in alive if row.host == host) for host in {row.host for row in alive}}


def look(context: Context) -> Seen:
    """Rows of the line's serving processes now."""
    with reading(context.engine) as s:
        rows = s.exec(select(ServingWorker).where(ServingWorker.line == LINE)).all()
    now, lease = context.now(), timedelta(seconds=context.settings.lease_seconds)

    def standing(row: ServingWorker) -> Standing:
        if has_ended(row.pid, row.process):
            return "ended"
        lenience = timedelta(0) if row.host == this_host() else lease
        return "fenced" if row.lease_until + lenience < now else "alive"

    return Seen(tuple((row, standing(row)) for row in rows))


def wait_for_barrier(
    context: Context,
    generation: int,
    digest: str,
    *,
    began: datetime,
    timeout_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
    steady: Callable[[], float] = time.monotonic,
) -> Barrier:
    """Wait until no process can answer with a generation below the committed `generation`; the rule is above.

    Args:
        digest: of the weights of that generation.
        began: when the swap began; processes gone before are left out of the barrier's rows.

    Raises:
        TryLaterError: not reached in time.
    """
    deadline = steady() + timeout_seconds
    while not (seen := look(context)).all_have(lambda row: row.acknowledged_generation >= generation):
        if steady() > deadline:
            raise TryLaterError(
                f"Expected every serving process to answer with generation {generation} in {timeout_seconds:.0f} s. "
                + seen.sentence()
            )
        sleep(LOOK_SECONDS)
    rows = [row for row in seen.rows if row[1] == "alive" or row[0].lease_until >= began]
    processes = tuple(_acknowledgement(row, standing) for row, standing in rows)
    return Barrier(generation, digest, context.now(), seen.expected(), processes)


def _acknowledgement(row: ServingWorker, standing: Standing) -> Acknowledgement:
    return Acknowledgement(
        row.boot_id,
        row.host,
        row.pid,
        "acknowledged" if standing == "alive" else standing,
        row.acknowledged_generation,
        row.acknowledged_at if standing == "alive" else None,
        row.lease_until,
    )
