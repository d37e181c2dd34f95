"""Callbacks: a client's URL is told of every move of its requests, signed after Standard Webhooks 1.0.0.

A delivery is a row, written by `enqueue` in the transaction of the move, so that no move goes untold and none is told
that did not happen. `deliver_due` is one pass over the rows whose time has come; `Deliverer` repeats it in a thread of
the worker. A killed worker may send a delivery twice, with the same `webhook-id`.

    pending ──► delivered   the receiver answered 2xx
       ├──► disabled        it answered 410 to this or another event of the same request at the same URL
       └──► given_up        `callback_days` have passed, and the attempt after them failed too

A body holds the request's id and what became of it: no user id, no commitment, no reason in words.

The signature (`v1a`) is Ed25519 with the service's signing key, the one that `GET /v1/keys` gives: receivers have one
key to trust. What is signed here starts with `msg_`, what is signed elsewhere (envelopes, checkpoints, manifests) never
does, so no signature passes for another kind. The key is the same for all receivers, so a receiver could replay an
event to another one; that one knows no such request. The package standardwebhooks (1.1.0) signs with shared secrets
only (`v1`).
"""

from __future__ import annotations

import base64
import random
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
import structlog
from sqlmodel import Session, col, select

from service.callbacks.addresses import OutboundError
from service.callbacks.outbound import Sender
from service.callbacks.outbox import DELIVERED, DISABLED, GIVEN_UP, PENDING
from service.context import Context
from service.store.engine import reading, session
from service.store.tables import CallbackDelivery
from service.telemetry.redact import describe

log = structlog.get_logger()


FIRST_WAIT: Final = timedelta(seconds=5)
WAIT_GROWTH: Final = 4
LONGEST_WAIT: Final = timedelta(hours=12)
JITTER: Final = 0.25  # of the wait, at most, on top of it
MOST_IN_A_PASS: Final = 100
BUSY: Final = frozenset({429, 502, 503, 504})  # say something of the receiver, not of the event

Send = Callable[[str, Mapping[str, str], bytes], int]
"""Posts a body to a URL with headers; gives the HTTP status or raises `OutboundError`."""


def signed_headers(delivery: CallbackDelivery, *, at: datetime, sign: Callable[[bytes], bytes]) -> dict[str, str]:
    """Headers of one attempt: the same id each time, the attempt's own time and signature."""
    message_id, seconds = f"msg_{delivery.request_id}_{delivery.id}", int(at.timestamp())
    signature = sign(f"{message_id}.{seconds}.{delivery.body}".encode())
    return {
        "Content-Type": "application/json",
        "User-Agent": "Expunge",
        "webhook-id": message_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": f"v1a,{base64.b64encode(signature).decode()}",
    }


def wait_after(n_attempts: int) -> timedelta:
    """Wait after the n-th failed attempt, without jitter: 5 s, 20 s, 80 s, … at most 12 hours."""
    return min(FIRST_WAIT * WAIT_GROWTH ** min(n_attempts - 1, 20), LONGEST_WAIT)


def deliver_due(context: Context, *, send: Send, rng: random.Random, stop: threading.Event | None = None) -> int:
    """Attempt the deliveries whose time has come, each once; gives how many were attempted.

    Those that were tried less come first, so that dead URLs delay the living as little as can be. After an attempt
    without an answer, or with one of `BUSY`, all that waits for that URL waits as long: one attempt finds out that a
    receiver is down, not a thousand.

    Args:
        context: database, keys, clock, settings.
        send: how to post.
        rng: jitter of the waits.
        stop: once set, no further attempt is begun.
    """
    with reading(context.engine) as s:
        due = _due(s, context.now())
        unwanted = _unwanted(s, due)
    n_attempted, resting = 0, set[str]()
    for delivery in due:
        place = (delivery.request_id, delivery.url)
        if stop is not None and stop.is_set():
            break
        if place in unwanted:
            _disable(context, delivery)
        elif delivery.url not in resting:
            status, result = _attempt(context, delivery, send)
            _settle(context, delivery, status, result, rng)
            n_attempted += 1
            if status is None or status in BUSY:
                resting.add(delivery.url)
            if status == 410:
                unwanted.add(place)
    return n_attempted


def _due(s: Session, now: datetime) -> list[CallbackDelivery]:
    query = (
        select(CallbackDelivery)
        .where(CallbackDelivery.status == PENDING, col(CallbackDelivery.next_attempt_at) <= now)
        .order_by(col(CallbackDelivery.n_attempts), col(CallbackDelivery.next_attempt_at), col(CallbackDelivery.id))
        .limit(MOST_IN_A_PASS)
    )
    return list(s.exec(query))


def _unwanted(s: Session, due: list[CallbackDelivery]) -> set[tuple[str, str]]:
    """Requests and URLs among the due that answered 410 before."""
    query = select(CallbackDelivery.request_id, CallbackDelivery.url).where(
        CallbackDelivery.status == DISABLED, col(CallbackDelivery.request_id).in_({row.request_id for row in due})
    )
    return {(request_id, url) for request_id, url in s.exec(query)} if due else set()


def _attempt(context: Context, delivery: CallbackDelivery, send: Send) -> tuple[int | None, str]:
    """HTTP status, if there was an answer, and the result in words that name neither person nor address."""
    headers = signed_headers(delivery, at=context.now(), sign=context.keyring.signing_key.sign)
    try:
        status = send(delivery.url, headers, delivery.body.encode())
    except OutboundError as error:
        return None, error.detail
    except Exception as error:  # whatever one URL does to us, the callbacks of the others go on
        log.error("callback.sender_failed", erasure_id=delivery.request_id, error=describe(error))
        return None, "The attempt failed inside the service."
    return status, f"HTTP {status}"


def _settle(context: Context, delivery: CallbackDelivery, status: int | None, result: str, rng: random.Random) -> None:
    """Write down what an attempt came to, in one transaction."""
    now, days = context.now(), timedelta(days=context.settings.callback_days)
    with session(context.engine) as s:
        row = s.get(CallbackDelivery, delivery.id, with_for_update=True)
        if row is None or row.status != PENDING:
            return
        row.n_attempts, row.last_result = row.n_attempts + 1, result
        if status is not None and 200 <= status < 300:
            _finish(row, DELIVERED, now)
        elif status == 410:
            _finish(row, DISABLED, now)
        else:
            wait, last = wait_after(row.n_attempts), row.created_at + days
            if now >= last:
                _finish(row, GIVEN_UP, now)
            else:
                # with jitter this one comes after those that wait for it: if it is at fault, they get through
                row.next_attempt_at = min(now + wait * (1 + JITTER * rng.random()), last)
            if status is None or status in BUSY:
                _rest(s, row, until=now + wait, now=now, days=days)
        s.add(row)
        s.commit()
    write = log.info if row.status in (PENDING, DELIVERED) else log.warning
    write(f"callback.{row.status}", erasure_id=row.request_id, status=status)


def _finish(row: CallbackDelivery, status: str, now: datetime) -> None:
    row.status, row.next_attempt_at, row.finished_at = status, None, now


def _rest(s: Session, failed: CallbackDelivery, *, until: datetime, now: datetime, days: timedelta) -> None:
    """Let what else waits for the URL wait until then, and give up what has waited for `callback_days`."""
    same_url = (
        col(CallbackDelivery.url) == failed.url,
        col(CallbackDelivery.status) == PENDING,
        col(CallbackDelivery.id) != failed.id,
    )
    update = sa.update(CallbackDelivery).where(*same_url).execution_options(synchronize_session=False)
    over = update.where(col(CallbackDelivery.created_at) <= now - days)
    later = update.where(col(CallbackDelivery.next_attempt_at) < until)
    n_attempts = col(CallbackDelivery.n_attempts)
    fewer = sa.case((n_attempts < failed.n_attempts, failed.n_attempts), else_=n_attempts)
    s.execute(over.values(status=GIVEN_UP, next_attempt_at=None, finished_at=now, last_result=failed.last_result))
    s.execute(later.values(next_attempt_at=until, n_attempts=fewer))


def _disable(context: Context, delivery: CallbackDelivery) -> None:
    with session(context.engine) as s:
        row = s.get(CallbackDelivery, delivery.id, with_for_update=True)
        if row is not None and row.status == PENDING:
            _finish(row, DISABLED, context.now())
            s.add(row)
            s.commit()


class Deliverer:
    """Delivers callbacks in a thread of its own while the `with` block runs: `with Deliverer(context): …`.

    Raises:
        StartupError: at construction, if the allow-list or the file of authorities cannot be read.
    """

    def __init__(
        self,
        context: Context,
        *,
        send: Send | None = None,
        rng: random.Random | None = None,
        poll_seconds: float = 1.0,
    ) -> None:
        self._context = context
        self._send = send or Sender.open(context.settings).post
        self._rng = rng or random.Random()
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="callbacks", daemon=True)

    def __enter__(self) -> Deliverer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Begin no further attempt. One under way is waited for a moment; the row of one cut off stays pending."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _deliver(self) -> None:
        while not self._stop.is_set():
            try:
                n_attempted = deliver_due(self._context, send=self._send, rng=self._rng, stop=self._stop)
            except Exception as error:  # the database restarts, the disk is full: the next pass may do better
                log.error("callback.pass_failed", error=describe(error))
                n_attempted = 0
            if not n_attempted:
                self._stop.wait(self._poll_seconds)
