"""The register: every request with what became of it and whether that was in time, as the controller's record.

Pure functions over the requests' rows; `records` has the pages.

Tested in `tests/service/console/test_records.py`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from service.console.views import words
from service.requests import states
from service.store.tables import ErasureRequest

COLUMNS: Final = (
    "Number", "Case reference", "Received", "Due", "Ended", "In time", "Outcome", "Ground", "Rejected because",
    "Extended because", "Certificate",
)  # fmt: skip
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would compute."""


@dataclass(frozen=True)
class Entry:
    """One request in the register; `in_time` is none while that is open, and for a cancelled one."""

    number: str
    case_reference: str
    received_at: datetime
    due_at: datetime
    ended_at: datetime | None
    in_time: bool | None
    outcome: str
    ground: str
    rejected: str
    extended: str
    certificate_id: str | None

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `COLUMNS`; moments in ISO 8601, in UTC."""
        in_time = {True: "yes", False: "no", None: ""}[self.in_time]
        ended = _iso(self.ended_at) if self.ended_at else ""
        return (
            self.number, self.case_reference, _iso(self.received_at), _iso(self.due_at), ended, in_time, self.outcome,
            self.ground, self.rejected, self.extended, self.certificate_id or "",
        )  # fmt: skip


def entry_of(request: ErasureRequest, now: datetime) -> Entry:
    """A request's line."""
    ended_at = request.updated_at if request.state in states.ENDS else None  # no row changes after its end
    in_time: bool | None = (ended_at or now) <= request.due_at
    if request.state == "cancelled" or (ended_at is None and in_time):
        in_time = None
    reason, _, explanation = (request.reject_reason or "").partition(": ")
    return Entry(
        number=request.id, case_reference=request.case_reference or "", received_at=request.received_at,
        due_at=request.due_at,
        ended_at=ended_at, in_time=in_time, outcome=words(request.outcome or request.state),
        ground=words(request.ground), rejected=f"{words(reason)}: {explanation}" if reason else "",
        extended=request.extension_reason or "", certificate_id=request.certificate_id,
    )  # fmt: skip


def as_csv(entries: Iterable[Entry]) -> str:
    """RFC 4180 with a line of names. What a spreadsheet would take for a formula gets an apostrophe in front of it."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([_harmless(cell) for cell in entry.cells] for entry in entries)
    return text.getvalue()


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
