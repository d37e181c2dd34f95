"""What happened since a backup, from whoever knows it: the records of a newer database take the place of the backup's.

Requests, certificates, the log, tombstones and API keys are those of the newer one, so that the log goes on where it
was, no key that was revoked works again, and nobody who asked is lost. Of the models the backup knows more: its weights
are the ones that are there. Weights that remember somebody who was erased since are not served, and those that are not
needed to erase them again are destroyed.

Tested in `tests/service/backups/test_restore.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col, func, select

from service.context import LINE, Context
from service.errors import BackupError
from service.keys.api_keys import READ, WRITE, Client
from service.models import registry, rosters
from service.requests import data_folder, intake, runs, states
from service.requests.schemas import MOST_IDS, Filing
from service.store import ledger
from service.store.engine import reading, session
from service.store.tables import (
    Deployment,
    KeyMark,
    LearnedSubject,
    ModelVersion,
    OpenLine,
    ReferenceBlock,
    Run,
    ServingWorker,
    WorkerLease,
)
from unlearning import files
from unlearning.faces.dataset import METADATA, read_rows

CLIENT: Final = Client("restore", "restore", frozenset({READ, WRITE}))
"""Files the erasures that a restore makes necessary again."""

_OF_THE_COPY: Final = {
    model.__tablename__
    for model in (
        Deployment, KeyMark, LearnedSubject, ModelVersion, OpenLine, ReferenceBlock, ServingWorker, WorkerLease,
    )
}  # fmt: skip
"""Tables that say what is there: the backup's own."""
_AT_A_TIME: Final = 1000
_EVERYBODY: Final = 10**9
_NOTE: Final = "The service was restored from a backup in the middle of the run, which begins anew."


@dataclass(frozen=True)
class Settled:
    """What a restore left to be done.

    Attributes:
        n_filed: people whose erasure was filed again, or for the first time.
        is_served: whether the weights in service remember none of them, so that predictions are answered at once.
        n_weights: weights of the backup that were destroyed, since they remember somebody.
    """

    n_filed: int
    is_served: bool
    n_weights: int


def take_over(context: Context, newer: sa.Engine) -> None:
    """Replace the records by those of a newer database of the same service.

    Raises:
        BackupError: it is another service's, or older than the backup.
    """
    with reading(context.engine) as mine, reading(newer) as theirs:
        marks = [dict(s.exec(select(KeyMark.name, KeyMark.mark)).all()) for s in (mine, theirs)]
        logs = [ledger.leaf_hashes(s) for s in (mine, theirs)]
    if marks[0] != marks[1]:
        raise BackupError("Expected records of the service that was backed up, got those of one with other keys.")
    if logs[1][: len(logs[0])] != logs[0]:
        raise BackupError(
            "Expected records that are newer than the backup: a log that goes on where the backup's ends. Theirs has "
            f"{len(logs[1])} entries, the backup's {len(logs[0])}, and does not begin with them."
        )
    with session(context.engine) as s, reading(newer) as theirs:
        for table in SQLModel.metadata.sorted_tables:
            if table.name not in _OF_THE_COPY:
                _replace(s, theirs, table)
        _add_history(s, theirs, context)
        s.commit()


def settle(context: Context, asked: list[str], *, created_at: str, was_told: bool) -> Settled:
    """Make of a copy the service that goes on: no open run, nobody erased served, their erasures filed.

    Args:
        asked: user ids of people to be erased, whom no record names.
        created_at: of the backup, ISO 8601.
        was_told: whether there were newer records, for the log.
    """
    with session(context.engine) as s:
        _close_runs(s, context)
        for model in (OpenLine, ServingWorker, WorkerLease):
            s.execute(sa.delete(model))
        s.commit()
    returned = _returned(context)
    people = sorted({*returned, *asked})
    gone = data_folder.erased_subjects(context) | {context.keyring.subject_hash(person) for person in people}
    is_served, doomed = _forget_weights(context, gone)
    with session(context.engine) as s:
        ledger.record(
            s, "restore", now=context.now(), backup_of=created_at, knows_what_happened_since=was_told,
            n_filed_again=len(people),
        )  # fmt: skip
        s.commit()
    for start in range(0, len(people), MOST_IDS):
        filing = Filing(user_ids=people[start : start + MOST_IDS])
        # a mass deletion was looked at by a human when it was asked for; now nobody is to be forgotten
        intake.file_requests(context, CLIENT, filing, n_subjects=lambda: _EVERYBODY, most_open=_EVERYBODY)
    return Settled(len(people), is_served, len(doomed))


def _replace(s: Session, theirs: Session, table: sa.Table) -> None:
    s.execute(sa.delete(table))
    rows = theirs.execute(sa.select(table)).mappings()
    while some := rows.fetchmany(_AT_A_TIME):
        s.execute(sa.insert(table), [dict(row) for row in some])
    key = table.autoincrement_column
    if key is not None and s.get_bind().dialect.name == "postgresql":
        last = sa.select(func.coalesce(func.max(key), 1)).scalar_subquery()
        s.execute(sa.select(func.setval(func.pg_get_serial_sequence(table.name, key.name), last)))


def _add_history(s: Session, theirs: Session, context: Context) -> None:
    """Versions that came after the backup, as destroyed; the pointer goes on where theirs was."""
    pointer, later = s.get(Deployment, LINE), theirs.get(Deployment, LINE)
    mine = set(s.exec(select(ModelVersion.digest)))
    for version in theirs.exec(select(ModelVersion)):
        if version.digest not in mine:
            values = version.model_dump() | {
                "state": "destroyed", "destroyed_at": version.destroyed_at or context.now(),
            }  # fmt: skip
            s.add(ModelVersion(**values))
    s.flush()
    if pointer is None or later is None:
        return
    pointer.oldest_allowed_generation = max(pointer.oldest_allowed_generation, later.oldest_allowed_generation)
    if pointer.committed_generation != later.committed_generation:
        highest = s.exec(select(func.max(col(ModelVersion.generation)))).one() or 0
        pointer.committed_generation = max(highest, later.committed_generation, later.staging_generation or 0) + 1
        active = registry.find(s, pointer.committed_digest)
        active.generation = pointer.committed_generation
        s.add(active)
    s.add(pointer)


def _close_runs(s: Session, context: Context) -> None:
    """Runs that were open end; their requests wait for a new one. What they destroyed is there again."""
    for run in s.exec(select(Run).where(col(Run.finished_at).is_(None))):
        requests = runs.requests_of(s, run.id)
        under_way = [request for request in requests if request.state != "needs_attention"]
        reason = {"attention_reason": _NOTE}
        states.move_all(s, [(each, reason) for each in under_way], "needs_attention", now=context.now(), note=_NOTE)
        states.move_all(s, [(each, {}) for each in requests], "queued", now=context.now(), note=_NOTE)
        kept = states.asked_to_keep(s, requests)
        states.stop(s, [each for each in requests if each.id in kept], _NOTE, now=context.now())
        run.purge, run.stage, run.stage_note, run.finished_at = None, "needs_attention", _NOTE, context.now()
        s.add(run)
    pointer = s.get(Deployment, LINE)
    if pointer is not None:
        pointer.staging_generation = pointer.staging_digest = None
        s.add(pointer)


def _returned(context: Context) -> list[str]:
    """User ids of the data folder whose erasure has ended."""
    erased = data_folder.erased_subjects(context)
    if not erased or not (context.settings.data_folder / METADATA).exists():
        return []
    return [
        person for person in read_rows(context.settings.data_folder).user_ids.values
        if context.keyring.subject_hash(person) in erased
    ]  # fmt: skip


def _forget_weights(context: Context, gone: set[str]) -> tuple[bool, list[str]]:
    """Refuse the weights in service if they remember one of these people, destroy all others that do or are not there.

    Returns:
        Whether the weights in service may be served, and the digests of those destroyed.
    """
    settings, is_served = context.settings, True
    with session(context.engine) as s:
        remembering = {digest for found in rosters.naming(s, gone).values() for digest in found}
        if gone:  # whom a version without a roster remembers, nobody knows
            known = select(LearnedSubject.digest).distinct()
            remembering.update(s.exec(select(ModelVersion.digest).where(col(ModelVersion.digest).not_in(known))))
        pointer = s.get(Deployment, LINE)
        doomed = []
        for version in s.exec(select(ModelVersion).where(ModelVersion.line == LINE, ModelVersion.state != "destroyed")):
            file = registry.path(settings, version.digest)
            if pointer is not None and version.digest == pointer.committed_digest:
                if version.digest in remembering:
                    is_served = False
                    pointer.oldest_allowed_generation = pointer.committed_generation + 1
                    s.add(pointer)
            elif version.digest in remembering or not file.exists():
                doomed += [version.digest] if file.exists() else []
                files.destroy(file)
                version.state, version.destroyed_at = "destroyed", context.now()
                s.add(version)
                rosters.forget(s, [version.digest])
        s.commit()
    return is_served, doomed
