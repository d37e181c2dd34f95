"""Which candidates are made a second time, and whether a chosen one was left out.

A run's candidate is made again if the keyed hash of the run's id, read as a number in [0, 1), is below the share. The
id is random and is logged, with the share and the SHA-256 of the key, before the run starts. Clients know neither id
nor key, so they cannot influence the choice; an auditor who is given the key and the log's entries can repeat it. An
operator who changes this program could draw ids until one suits, without a trace: the check finds omissions of an
unchanged program, not forgery.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def key_commitment(key: bytes) -> str:
    """SHA-256 (hex) of the key; it can be public and reveals nothing of a random key."""
    return hashlib.sha256(key).hexdigest()


def is_chosen(key: bytes, run_id: str, share: float) -> bool:
    """Whether HMAC-SHA-256(key, run id), read as a fraction of 2²⁵⁶, lies below the share."""
    number = int.from_bytes(hmac.digest(key, run_id.encode(), "sha256"))
    return number < share * 2**256


@dataclass(frozen=True)
class Omissions:
    """Runs of a log whose candidate should have been made twice.

    Attributes:
        n_runs: completed runs whose candidate passed an audit.
        chosen: those that the key chooses.
        other_key: runs logged under another key, for which this key decides nothing.
        omitted: chosen runs for which no second candidate with equal weights was logged before the end.
    """

    n_runs: int
    chosen: tuple[str, ...]
    other_key: tuple[str, ...]
    omitted: tuple[str, ...]


def omissions(entries: Iterable[bytes | str], key: bytes) -> Omissions:
    """Find omitted runs in all entries of a log, in order.

    Raises:
        ValueError: an entry is not JSON.
        KeyError: an entry lacks a field of its kind.
    """
    share: dict[str, float] = {}
    commitment: dict[str, str] = {}
    passed: dict[str, str] = {}  # run → weights
    agreed: set[tuple[str, str]] = set()
    runs, chosen, other_key, omitted = 0, [], [], []
    for text in entries:
        entry: dict[str, Any] = json.loads(text)
        kind, run_id = entry["kind"], str(entry.get("run_id"))
        if kind == "policy" and "rerun_share" in entry:
            share[run_id], commitment[run_id] = float(entry["rerun_share"]), entry["rerun_key_sha256"]
        elif kind == "audit" and entry["verdict"] == "PASSED":
            passed[run_id] = entry["weights"]
        elif kind == "rerun" and entry["weights"] == entry["again"]:
            agreed.add((run_id, entry["weights"]))
        elif kind == "run" and entry["end"] == "completed" and run_id in passed and run_id in share:
            runs += 1
            if commitment[run_id] != key_commitment(key):
                other_key.append(run_id)
            elif is_chosen(key, run_id, share[run_id]):
                chosen.append(run_id)
                if (run_id, passed[run_id]) not in agreed:
                    omitted.append(run_id)
    return Omissions(runs, tuple(chosen), tuple(other_key), tuple(omitted))
