"""Filing erasure requests: all people of a call or none, one request a person, in one transaction.

Whether the service knows a person is not looked at here, so a known and an unknown one get the same answer in the same
time. In the transaction of the requests each person gets a *tombstone*, which keeps them out of every later training
run.

A person with an open request gets a follower of it (see `states`). Before that, the open one is brought in line: if it
waits as part of a held mass deletion, a call that is not held itself releases it; if no run has claimed it yet, a call
with a legal hold stops it. One that a run has is held once that run stops and has destroyed nothing (`states.stop`).
Destroying what should have been kept is the one mistake that cannot be mended.
"""

from __future__ import annotations

import json
import re
import secrets
import unicodedata
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote_plus, urlsplit

import sqlalchemy as sa
from dateutil.relativedelta import relativedelta
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, func, select

from service.callbacks.addresses import AllowList, may_lead_out
from service.context import Context
from service.errors import InvalidInputError, TryLaterError
from service.keys.api_keys import Client
from service.keys.keyring import Keyring, commitment
from service.requests import runs, states
from service.requests.schemas import Filed, Filing, Receipt
from service.store.engine import session
from service.store.tables import ApiKey, ErasureRequest, IdempotencyRecord, Tombstone

MASS_DELETION, LEGAL_HOLD = "mass_deletion", states.LEGAL_HOLD
CLOCK_SKEW = timedelta(minutes=5)
OLDEST_RECEIPT = relativedelta(years=1)
MOST_KEY_CHARS = 255
TELLING = 6  # characters from which on a user id stands in a URL on purpose

_CAME_LATER = frozenset({"received_at", "case_references"})  # without them a call keeps the hash it had before
_ATTEMPTS = 3  # PostgreSQL: two calls with one Idempotency-Key at once; the second finds the first's answer


class QuotaError(TryLaterError):
    """The client has too many open requests."""

    status = 429
    title = "Too many open requests"


def due_at(received_at: datetime, months: int = 1) -> datetime:
    """The legal deadline: the same day and time `months` calendar months later, or that month's last day."""
    return received_at + relativedelta(months=months)


def file_requests(
    context: Context,
    client: Client,
    filing: Filing,
    *,
    n_subjects: Callable[[], int],
    most_open: int,
    idempotency_key: str | None = None,
) -> Filed:
    """Accept a call whole and commit it, or store nothing.

    Args:
        context: database, keys, clock, ids, settings.
        client: who files.
        filing: checked body.
        n_subjects: how many people the service holds data of; asked only where several count together.
        most_open: largest number of open requests a client may have whose key does not say another.
        idempotency_key: same key and body give the same answer for `idempotency_days`, whatever happened in between;
            only the salts of requests that have ended are gone from it.

    Raises:
        InvalidInputError: asked or received in the future or before it was asked, a receipt of more than a year ago, a
            case reference that tells a user id, a callback that may not be sent, an unfit key, or a key that was used
            with another body.
        QuotaError: the call would exceed the quota.
    """
    now = context.now()
    complaint = _complaint(context, filing, now)
    if complaint and idempotency_key is None:
        raise InvalidInputError(complaint)
    if idempotency_key is not None and not _is_fit_key(idempotency_key):
        raise InvalidInputError(
            f"Expected one Idempotency-Key of 1 to {MOST_KEY_CHARS} visible ASCII characters, without a comma."
        )
    together = len(filing.user_ids) > 1 or context.settings.mass_deletion_hours > 0
    most_unheld = context.settings.mass_deletion_share * max(1, n_subjects()) if together else 1.0
    body_hash = _keyed_hash(context.keyring, filing)
    if idempotency_key is not None:  # callers make it of what they have, a person's id too: kept is its keyed hash
        idempotency_key = context.keyring.subject_hash(f"idempotency\n{idempotency_key}")
    for _ in range(_ATTEMPTS):
        with session(context.engine) as s:
            try:
                answered = _earlier_answer(s, context, client, idempotency_key, body_hash)
                if answered is not None:
                    return answered  # though it would not be accepted now: the clock was set back, a setting changed
                if complaint:
                    raise InvalidInputError(complaint)
                filed = _file(s, context, client, filing, most_unheld=most_unheld, most_open=most_open, now=now)
                if idempotency_key is not None:
                    answer = filed.model_dump(mode="json")
                    for receipt in answer["requests"]:
                        receipt["commitment_salt"] = None  # it ends with the request's row
                    record = IdempotencyRecord(
                        client_id=client.id, key=idempotency_key, body_sha256=body_hash, response=answer, created_at=now
                    )  # fmt: skip
                    s.add(record)
                s.commit()
            except IntegrityError:
                continue  # the other call committed first: its answer is there now
            return filed
    raise TryLaterError("Another call with the same Idempotency-Key is being answered; repeat this one.")


def forget_old_answers(context: Context) -> int:
    """Delete what was kept of calls with an Idempotency-Key that is older than `idempotency_days`; gives how many."""
    with session(context.engine) as s:
        old = col(IdempotencyRecord.created_at) <= context.now() - timedelta(days=context.settings.idempotency_days)
        n_deleted = s.execute(sa.delete(IdempotencyRecord).where(old)).rowcount  # type: ignore[attr-defined]
        s.commit()
    return int(n_deleted)


def bury(s: Session, subject_hashes: list[str], *, now: datetime) -> None:
    """Write the people's tombstones. In PostgreSQL this also locks them: calls about one person go one by one."""
    insert = sqlite.insert if s.get_bind().dialect.name == "sqlite" else postgresql.insert
    rows = [{"subject_hash": subject_hash, "created_at": now} for subject_hash in sorted(subject_hashes)]
    statement = insert(Tombstone)
    key = statement.excluded.subject_hash
    s.execute(statement.on_conflict_do_update(index_elements=["subject_hash"], set_={"subject_hash": key}), rows)


def unbury(s: Session, subject_hash: str) -> None:
    """Remove a person's tombstone unless another request still asks, or asked successfully, for the erasure."""
    refused = col(ErasureRequest.state).in_(("cancelled", "rejected"))
    others = select(ErasureRequest.id).where(ErasureRequest.subject_hash == subject_hash, ~refused).limit(1)
    if s.exec(others).first() is None:
        s.execute(sa.delete(Tombstone).where(col(Tombstone.subject_hash) == subject_hash))


def _file(
    s: Session,
    context: Context,
    client: Client,
    filing: Filing,
    *,
    most_unheld: float,
    most_open: int,
    now: datetime,
) -> Filed:
    _check_quota(s, client, len(filing.user_ids), most_open)
    held_for = LEGAL_HOLD if filing.legal_hold else None
    if held_for is None and _is_mass(s, context, client, len(filing.user_ids), most_unheld):
        held_for = MASS_DELETION
    hashes = [context.keyring.subject_hash(user_id) for user_id in filing.user_ids]
    bury(s, hashes, now=now)
    leaders = _leaders(s, hashes)
    batch_id = context.new_id()
    received_at = filing.received_at or now
    filed = []
    for number, (user_id, subject_hash) in enumerate(zip(filing.user_ids, hashes, strict=True), 1):
        salt = secrets.token_bytes(16)
        request = ErasureRequest(
            id=f"{batch_id}-{number:04d}", client_id=client.id, user_id=user_id, subject_hash=subject_hash,
            case_reference=filing.case_references[number - 1] if filing.case_references else None,
            commitment=commitment(salt, user_id), commitment_salt=salt.hex(), regulation=filing.regulation,
            ground=filing.ground, legal_hold=filing.legal_hold, callback_url=filing.callback_url,
            requested_at=filing.requested_at or received_at, received_at=received_at, filed_at=now,
            hold_until=now + context.settings.hold, due_at=due_at(received_at), updated_at=now,
            completed_at=None, state="",
        )  # fmt: skip
        leader = leaders.get(subject_hash)
        if leader is not None:
            _settle_with(s, leader, held_for, now=now)
        states.begin(s, request, now=now, leader=leader, attention_reason=held_for)
        filed.append(request)
    s.flush()
    return Filed(batch_id=batch_id, requests=[_receipt(request, leaders) for request in filed])


def _settle_with(s: Session, leader: ErasureRequest, held_for: str | None, *, now: datetime) -> None:
    """Bring an open request in line with a new one for the same person, before that follows it."""
    if held_for is None and leader.attention_reason == MASS_DELETION:
        states.move(s, leader, "queued", now=now, note="The person was also asked for outside of the held batch.")
    elif held_for == LEGAL_HOLD != leader.attention_reason and leader.state in ("queued", "needs_attention"):
        if leader.run_id is not None and runs.must_be_resumed(s, leader.run_id):
            return  # what is being destroyed cannot be held any more
        note = "A later request for the same person came with a legal hold."
        if leader.state == "needs_attention":  # by way of the queue, in this transaction: its reason changes
            states.move(s, leader, "queued", now=now, note=note)
        states.move(s, leader, "needs_attention", now=now, note=note, attention_reason=LEGAL_HOLD, legal_hold=True)


def _leaders(s: Session, subject_hashes: list[str]) -> dict[str, ErasureRequest]:
    """Open requests of these people that others may follow, by subject hash; locked until the commit."""
    query = (
        select(ErasureRequest)
        .where(
            col(ErasureRequest.subject_hash).in_(subject_hashes),
            col(ErasureRequest.state).not_in(states.ENDS),
            col(ErasureRequest.linked_request_id).is_(None),
        )
        .order_by(col(ErasureRequest.id))
        .with_for_update()
    )
    return {request.subject_hash: request for request in s.exec(query)}


def receipt_of(request: ErasureRequest, linked_request_id: str | None) -> Receipt:
    """What is said of an accepted request to its client, who may see the request that it follows."""
    values = {name: getattr(request, name) for name in Receipt.model_fields if hasattr(request, name)}
    late = due_at(request.received_at) < request.filed_at
    return Receipt.model_validate(values | {"linked_request_id": linked_request_id, "overdue": late})


def _receipt(request: ErasureRequest, leaders: dict[str, ErasureRequest]) -> Receipt:
    leader = leaders.get(request.subject_hash)
    shown = leader.id if leader is not None and leader.client_id == request.client_id else None
    return receipt_of(request, shown)


def _check_quota(s: Session, client: Client, n_new: int, most_open: int) -> None:
    key = s.get(ApiKey, client.id, with_for_update=True)  # calls of one client are counted one by one
    if key is not None and key.most_open is not None:
        most_open = key.most_open
    mine = select(func.count()).select_from(ErasureRequest).where(ErasureRequest.client_id == client.id)
    n_open = s.exec(mine.where(col(ErasureRequest.state).not_in(states.ENDS))).one()
    if n_open + n_new > most_open:
        raise QuotaError(
            f"Expected at most {most_open} open requests of one client; {n_open} are open and {n_new} came. "
            "Wait until some are completed.",
            retry_after_seconds=60,
        )


def _is_mass(s: Session, context: Context, client: Client, n_new: int, most: float) -> bool:
    """Whether a call, with those of the client that count with it, is for a human to look at. One person never is."""
    span = timedelta(hours=context.settings.mass_deletion_hours)
    mine = select(func.count()).select_from(ErasureRequest).where(
        ErasureRequest.client_id == client.id, ErasureRequest.filed_at > context.now() - span,
        col(ErasureRequest.state).not_in(("cancelled", "rejected")),
    )  # fmt: skip
    n_people = n_new + (s.exec(mine).one() if span else 0)
    return n_people > max(1.0, most)


def _earlier_answer(s: Session, context: Context, client: Client, key: str | None, body_hash: str) -> Filed | None:
    """The answer that was given under the key, with the salts that there still are."""
    record = s.get(IdempotencyRecord, (client.id, key)) if key is not None else None
    if record is None:
        return None
    if record.created_at + timedelta(days=context.settings.idempotency_days) <= context.now():
        s.delete(record)
        s.flush()
        return None
    if record.body_sha256 != body_hash:
        raise InvalidInputError(
            "Expected the body this Idempotency-Key was first used with; use a new key for a new call."
        )
    answer = record.response
    ids = [receipt["id"] for receipt in answer["requests"]]
    pairs = select(ErasureRequest.id, ErasureRequest.commitment_salt).where(col(ErasureRequest.id).in_(ids))
    salts = dict(s.exec(pairs).all())
    receipts = []
    for receipt in answer["requests"]:
        # An answer kept by an earlier release has none of these.
        absent = {"filed_at": receipt["received_at"], "overdue": False, "case_reference": None}
        receipts.append(absent | receipt | {"commitment_salt": salts.get(receipt["id"])})
    return Filed.model_validate({**answer, "requests": receipts})


def _complaint(context: Context, filing: Filing, now: datetime) -> str | None:
    """What is wrong with a call beyond its form; none: nothing."""
    if filing.requested_at is not None and filing.requested_at > now + CLOCK_SKEW:
        return "Expected requested_at not to lie in the future."
    if filing.received_at is not None and (complaint := _complaint_of_receipt(filing, filing.received_at, now)):
        return complaint
    if (place := telling_case_reference(filing.case_references or (), filing.user_ids)) is not None:
        return (
            "Expected case references that neither contain a user id of this call, however it is spelled, nor are part "
            f"of one; number {place + 1} does or is. They are kept after the erasure: give your own case number."
        )
    if _names_someone(filing.callback_url, filing.user_ids):
        return "Expected a callback_url without user ids; a callback carries the request id."
    if filing.callback_url and not may_lead_out(filing.callback_url, AllowList.parse(context.settings.callback_allow)):
        return (
            "Expected a callback_url on the public internet, its host is a loopback, private or reserved address; an "
            "operator can allow it (EXPUNGE_CALLBACK_ALLOW)."
        )
    return None


def _complaint_of_receipt(filing: Filing, received_at: datetime, now: datetime) -> str | None:
    if received_at > now + CLOCK_SKEW:
        return "Expected received_at not to lie in the future."
    if received_at < now - OLDEST_RECEIPT:
        return (
            "Expected received_at to be at most a year ago, so that a mistyped year is noticed. A request that is even "
            "older is overdue with any date: give the true one as requested_at, and here one within the year."
        )
    if filing.requested_at is not None and filing.requested_at > received_at + CLOCK_SKEW:
        return "Expected requested_at, when the person asked, not to be later than received_at."
    return None


def _keyed_hash(keyring: Keyring, filing: Filing) -> str:
    """HMAC of the call; the line break keeps it apart from the hash of any user id, which cannot contain one."""
    dumped: dict[str, Any] = filing.model_dump(mode="json")
    body = {name: value for name, value in dumped.items() if value is not None or name not in _CAME_LATER}
    return keyring.subject_hash("filing\n" + json.dumps(body, sort_keys=True))


def _names_someone(url: str | None, user_ids: Collection[str]) -> bool:
    """Whether a URL tells a user id: as a part of its path or query, or anywhere if it is too long for chance."""
    parts = urlsplit(url or "")
    told = {unquote_plus(part) for part in re.split(r"[/?&=;]", f"{parts.path}?{parts.query}")}
    whole = unquote_plus(url or "").casefold()
    return any(user_id in told or (len(user_id) >= TELLING and user_id.casefold() in whole) for user_id in user_ids)


def telling_case_reference(case_references: Sequence[str | None], user_ids: Collection[str]) -> int | None:
    """Index of the first one that contains a user id or is part of one, however they are spelled; or none."""
    ids = [bare for bare in map(_bare, user_ids) if bare]
    whole = "\n".join(ids)
    for place, case_reference in enumerate(case_references):
        bare = _bare(case_reference or "")
        if bare and (bare in whole or any(each in bare for each in ids)):
            return place
    return None


def _bare(text: str) -> str:
    """Letters and digits alone, without case, accents and width."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(character for character in folded if character.isalnum())


def _is_fit_key(key: str) -> bool:
    """A comma is how two headers are joined on their way, and which of the two keys was meant nobody knows."""
    return 1 <= len(key) <= MOST_KEY_CHARS and all(33 <= ord(each) <= 126 and each != "," for each in key)
