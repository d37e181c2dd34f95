"""Whether the data folder can be relied on: "nothing found" must not mean "could not look".

A volume that is not mounted, a table that lost rows, the folder of another service and a database older than the home
all look as if a subject had no data. So the folder is compared with the database before anything is said about
anybody: every subject that the model in service learned from (`rosters`) must have training rows in the folder. If one
has not, there is an *obstacle*: requests wait in `needs_attention`, and go on by themselves once the worker has seen
that the obstacle is gone (`Watch`). Subjects that were added after the training are no obstacle.

A model version made before there were rosters gets one if the folder is provably the one it was trained on: the digest
of its data is the folder's, or the certificates of the erasures since lead from the one to the other. Otherwise a human
has to confirm it.

Tested in `tests/service/requests/test_looking.py`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from sqlmodel import Session, col, select

from audit.proof.envelope import read_payload
from service.context import LINE, Context
from service.models import rosters
from service.requests import states
from service.store.engine import reading, session
from service.store.tables import (
    CertificateRecord,
    Deployment,
    ErasureRequest,
    LearnedSubject,
    ModelVersion,
    Tombstone,
    WorkerLease,
)
from unlearning.errors import FacesError
from unlearning.faces import Rows
from unlearning.faces.dataset import METADATA, SPLITS, read_rows
from unlearning.faces.decoding import SUFFIXES
from unlearning.faces.packing import folder_digest

log = structlog.get_logger()

COULD_NOT_LOOK = "Could not look: "
"""How the reasons begin that no longer hold once the data folder can be relied on again."""

MISSING = (
    f"{COULD_NOT_LOOK}there is no {METADATA} in the data folder, as where a volume is not mounted. Bring the folder "
    "back and the request goes on by itself. A service that holds no data says so by a table of a header alone."
)
UNREADABLE = (
    f"{COULD_NOT_LOOK}the table of the data folder cannot be read; `expunge data check` says why. Mend it and the "
    "request goes on by itself."
)
NO_ROSTER = (
    f"{COULD_NOT_LOOK}it is not known whom a model version learned from, made by an earlier release of Expunge, and "
    "the data folder is not as it was then. If it holds the data of everybody the model learned from, approve one "
    "request to confirm that; else bring that data back, or train anew with `expunge train` and approve then."
)

LOOK_AGAIN_SECONDS = 600.0  # if the table did not change: the database or the models may have


@dataclass(frozen=True)
class Held:
    """What the table of the data folder names.

    Attributes:
        n_images, n_trained: by user id, number of rows and of rows of the training split.
        n_rows: number of rows of the table.
    """

    n_images: Mapping[str, int]
    n_trained: Mapping[str, int]
    n_rows: int


def look(context: Context) -> Held | str:
    """What the data folder holds, or a sentence that says why this cannot be known."""
    if n_unknown := _n_unknown_weights(context):
        return (
            f"{COULD_NOT_LOOK}the home holds {n_unknown} weights file(s) that the database does not know: it is older "
            "than the home, or another one's. Restore the database that belongs to this home, or take the files out of "
            "its folder `models` and destroy them; then the request goes on by itself."
        )
    folder = context.settings.data_folder
    try:
        if not (folder / METADATA).exists():
            return MISSING
        held = _held(read_rows(folder))
    except (FacesError, OSError):
        return UNREADABLE
    if not _settle_rosters(context, held):
        return NO_ROSTER
    with reading(context.engine) as s:
        pointer = s.get(Deployment, LINE)
        learned_from = rosters.read(s, pointer.committed_digest) if pointer is not None else {}
    n_lacking = len(learned_from.keys() - _roster(context, held).keys()) if learned_from else 0
    if n_lacking:
        return (
            f"{COULD_NOT_LOOK}the data folder lacks {n_lacking} of the {len(learned_from)} people the model in service "
            "learned from: their rows of split train are gone, or it is another folder. Bring the data back and the "
            "request goes on by itself; where they are gone for good, train anew with `expunge train`."
        )
    return held


def confirm(context: Context) -> None:
    """Give versions without a roster the one of the folder, because a human confirmed it."""
    try:
        held = _held(read_rows(context.settings.data_folder))
    except (FacesError, OSError):
        return
    with session(context.engine) as s:
        for version in _without_roster(s):
            rosters.write(s, version.digest, _roster(context, held))
        s.commit()
    log.warning("rosters.confirmed")


def n_returned(context: Context, held: Held) -> int:
    """How many erased subjects the table names: somebody restored their data, or imported them again.

    Their tombstones keep them out of every training, but the service holds what it certified as destroyed.
    """
    erased = erased_subjects(context)
    return sum(context.keyring.subject_hash(subject) in erased for subject in held.n_images) if erased else 0


def erased_subjects(context: Context) -> set[str]:
    """Keyed hash of everybody whose erasure has ended, not of those who wait for it."""
    with reading(context.engine) as s:
        asked = set(s.exec(select(Tombstone.subject_hash)))
        is_open = col(ErasureRequest.state).not_in(states.ENDS)
        waiting = set(s.exec(select(ErasureRequest.subject_hash).where(is_open)))
    return asked - waiting


def has_unnamed_images(context: Context, held: Held) -> bool:
    """Whether there are more image files than rows. No two rows share a file; else the folder could not be packed."""
    n_files = 0
    for _, folders, names in os.walk(context.settings.data_folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        n_files += sum(name.lower().endswith(SUFFIXES) and not name.startswith(".") for name in names)
    return n_files > held.n_rows


def _raise(error: OSError) -> None:
    raise error


def _held(rows: Rows) -> Held:
    subjects, n_subjects = rows.user_ids.values, len(rows.user_ids.values)
    trained = rows.splits.positions_in(SPLITS, np.uint8) == SPLITS.index("train")
    n_images = np.bincount(rows.user_ids.positions, minlength=n_subjects)
    n_trained = np.bincount(rows.user_ids.positions[trained], minlength=n_subjects)
    return Held(
        dict(zip(subjects, n_images.tolist(), strict=True)),
        dict(zip(subjects, n_trained.tolist(), strict=True)),
        len(rows),
    )


def _roster(context: Context, held: Held) -> dict[str, int]:
    """The roster of a model that learns from every subject of the training split."""
    return {context.keyring.subject_hash(subject): n for subject, n in held.n_trained.items() if n}


def _n_unknown_weights(context: Context) -> int:
    with reading(context.engine) as s:
        known = set(s.exec(select(ModelVersion.digest)))
    return sum(path.stem not in known for path in context.settings.models_folder.glob("*.safetensors"))


def _without_roster(s: Session) -> list[ModelVersion]:
    """Versions that have weights and no roster."""
    known = select(LearnedSubject.digest).distinct()
    lacking = select(ModelVersion).where(
        ModelVersion.line == LINE, ModelVersion.state != "destroyed", col(ModelVersion.digest).not_in(known)
    )
    return list(s.exec(lacking))


def _settle_rosters(context: Context, held: Held) -> bool:
    """Give versions without a roster theirs, if the folder is provably theirs; gives whether all have one now."""
    with reading(context.engine) as s:
        lacking = _without_roster(s)
    if not lacking:
        return True
    try:
        now = folder_digest(context.settings.data_folder)
    except (FacesError, OSError):
        return False
    with session(context.engine) as s:
        led_to = _led_to(s, now)
        for version in (proven := [each for each in lacking if each.manifest.get("data_manifest_digest") in led_to]):
            rosters.write(s, version.digest, _roster(context, held))
        s.commit()
    return len(proven) == len(lacking)


def _led_to(s: Session, digest: str) -> set[str]:
    """This digest of the data folder and all earlier ones that led to it by erasures alone."""
    before: dict[str, set[str]] = {}
    for envelope in s.exec(select(CertificateRecord.envelope)):
        procedure = json.loads(read_payload(envelope["envelope"]))["predicate"]["procedure"]
        before.setdefault(procedure["data_digest_after"], set()).add(procedure["data_digest_before"])
    found, new = set[str](), {digest}
    while new:
        found |= new
        new = {earlier for later in new for earlier in before.get(later, ())} - found
    return found


class Watch:
    """The worker's watch on the folder: records what it sees, and lets waiting requests go on.

    It looks when the table appeared, changed or went away, and every `LOOK_AGAIN_SECONDS`.

    Attributes:
        obstacle: the obstacle at the latest look; empty: none.
    """

    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._clock = clock
        self.obstacle = ""
        self._seen: object = ()
        self._due_at = clock()

    def tend(self) -> None:
        """Look if it is time to. To be called often."""
        seen = _signature(self._context.settings.data_folder / METADATA)
        if seen == self._seen and self._clock() < self._due_at:
            return
        found = look(self._context)
        self.obstacle = found if isinstance(found, str) else ""
        returned = None if isinstance(found, str) else n_returned(self._context, found)
        if self._record(returned):
            if self.obstacle:
                log.error("data_folder.obstacle", reason=self.obstacle)
            if returned:
                log.error("data_folder.erased_people_returned", n_people=returned)
        if not self.obstacle and (n_released := release(self._context)):
            log.info("data_folder.released", n_requests=n_released)
        self._seen, self._due_at = seen, self._clock() + LOOK_AGAIN_SECONDS

    def _record(self, returned: int | None) -> bool:
        """Write obstacle and returned subjects into the lease's row; gives whether they changed."""
        with session(self._context.engine) as s:
            lease = s.get(WorkerLease, LINE)
            if lease is None or (lease.data_obstacle, lease.n_returned) == (self.obstacle, returned):
                return False
            lease.data_obstacle, lease.n_returned = self.obstacle, returned
            s.add(lease)
            s.commit()
        return True


def release(context: Context) -> int:
    """Put the requests that waited for the data folder back into the queue; gives how many."""
    with session(context.engine) as s:
        waiting = select(ErasureRequest).where(
            ErasureRequest.state == "needs_attention",
            col(ErasureRequest.attention_reason).startswith(COULD_NOT_LOOK, autoescape=True),
            col(ErasureRequest.linked_request_id).is_(None),
        )
        released = list(s.exec(waiting.with_for_update()))
        note = "The data folder can be looked at again."
        states.move_all(s, [(request, {}) for request in released], "queued", now=context.now(), note=note)
        s.commit()
    return len(released)


def _signature(table: Path) -> object:
    try:
        status = table.stat()
    except OSError as error:
        return error.errno
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
