from __future__ import annotations

import base64
import io
import json
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature

from audit.proof.envelope import public_keys_pem
from service.callbacks import delivery
from service.callbacks.addresses import OutboundError
from service.callbacks.delivery import Deliverer, deliver_due, wait_after
from service.callbacks.outbox import deliveries_of
from service.context import Context
from service.errors import StartupError
from service.requests import states
from service.settings import Settings
from service.store.engine import session
from service.store.tables import CallbackDelivery, ErasureRequest
from tests.waiting import PATIENCE_SECONDS, join, wait_until

pytestmark = pytest.mark.both_databases

URL = "https://privacy.example.org/erasure-events?tenant=7"
DOCUMENT = Path(__file__).parents[3] / "docs" / "callbacks.md"


class Receiver:
    """Stands in for the network: notes what is posted, and answers what it is told to, URL by URL."""

    def __init__(self) -> None:
        self.answers: dict[str, int | Exception] = {}
        self.posts: list[tuple[str, dict[str, str], bytes]] = []

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        self.posts.append((url, dict(headers), body))
        answer = self.answers.get(url, 204)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def told(self, url: str = URL) -> list[str]:
        return [json.loads(body)["data"]["state"] for to, _, body in self.posts if to == url]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def deliver(context: Context, receiver: Receiver) -> Callable[[], int]:
    """One pass."""
    return partial(deliver_due, context, send=receiver, rng=random.Random(0))


def stored(
    context: Context, number: int = 1, url: str | None = URL, leader: ErasureRequest | None = None
) -> ErasureRequest:
    now = context.now()
    request = ErasureRequest(
        id=f"batch-{number:04d}", client_id="client", case_reference=f"DSR-{number}", state="",
        user_id="canary-s31", subject_hash="h", commitment="c", commitment_salt="00", regulation="gdpr",
        ground="unspecified", callback_url=url,
        requested_at=now, received_at=now, filed_at=now, hold_until=now, due_at=now + timedelta(days=28),
        updated_at=now, completed_at=None,
    )  # fmt: skip
    with session(context.engine) as s:
        states.begin(s, request, now=now, leader=leader)
        s.commit()
    return request


def move(context: Context, request: ErasureRequest, to_state: str, **fields: Any) -> None:
    with session(context.engine) as s:
        states.move(s, request, to_state, now=context.now(), **fields)
        s.commit()


def told_of(context: Context, number: int = 1) -> list[CallbackDelivery]:
    with session(context.engine) as s:
        return deliveries_of(s, f"batch-{number:04d}")


def statuses(context: Context, number: int = 1) -> list[str]:
    return [row.status for row in told_of(context, number)]


def test_every_move_is_told_and_nothing_else(context: Context, receiver: Receiver, deliver: Callable[[], int]) -> None:
    request = stored(context)
    for state in ("unlearning", "auditing", "unlearning", "auditing", "deploying", "purging"):
        move(context, request, state)
    move(context, request, "completed", outcome="erased", certificate_id="cert-1")
    silent = stored(context, 2, url=None)
    move(context, silent, "cancelled")
    assert deliver() == 7
    assert receiver.told() == ["unlearning", "auditing", "unlearning", "auditing", "deploying", "purging", "completed"]
    assert statuses(context) == ["delivered"] * 7
    assert told_of(context, 2) == []
    assert deliver() == 0
    _, headers, body = receiver.posts[-1]
    assert json.loads(body) == {
        "type": "erasure_request.completed",
        "timestamp": "2026-01-31T12:00:00Z",
        "data": {
            "request_id": "batch-0001",
            "case_reference": "DSR-1",
            "state": "completed",
            "outcome": "erased",
            "due_at": "2026-02-28T12:00:00Z",
            "certificate_id": "cert-1",
        },
    }
    assert headers["Content-Type"] == "application/json"
    assert "canary" not in repr(receiver.posts)


def test_a_move_that_did_not_happen_is_not_told(context: Context) -> None:
    request = stored(context)
    with session(context.engine) as s:
        states.move(s, request, "unlearning", now=context.now())
        s.rollback()
    assert told_of(context) == []


def test_a_new_deadline_is_told_and_a_note_is_not(context: Context, clock: Any) -> None:
    request = stored(context)
    with session(context.engine) as s:
        states.annotate(s, request, now=clock(), note="why", extension_reason="many")
        states.annotate(s, request, now=clock(), note="why", due_at=datetime(2026, 4, 30, 12, tzinfo=UTC))
        s.commit()
    (row,) = told_of(context)
    assert json.loads(row.body)["data"]["due_at"] == "2026-04-30T12:00:00Z"


def test_a_follower_is_told_at_its_own_url(context: Context, receiver: Receiver, deliver: Callable[[], int]) -> None:
    leader = stored(context)
    stored(context, 2, url="https://other.example/", leader=leader)
    move(context, leader, "unlearning")
    deliver()
    assert [(url, json.loads(body)["data"]["request_id"]) for url, _, body in receiver.posts] == [
        (URL, "batch-0001"),
        ("https://other.example/", "batch-0002"),
    ]


def test_each_attempt_is_signed_for_its_own_time(
    context: Context, receiver: Receiver, deliver: Callable[[], int], clock: Any
) -> None:
    move(context, stored(context), "cancelled")
    receiver.answers[URL] = 500
    deliver()
    clock.advance(seconds=10)
    deliver()
    (_, first, body), (_, second, same_body) = receiver.posts
    assert body == same_body
    assert first["webhook-id"] == second["webhook-id"]
    assert re.fullmatch(r"msg_[^.]+", first["webhook-id"])
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 10
    assert int(second["webhook-timestamp"]) == clock().timestamp()
    for headers in (first, second):
        version, signature = headers["webhook-signature"].split(",")
        assert version == "v1a"
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        context.keyring.public_key.verify(base64.b64decode(signature), signed)
        with pytest.raises(InvalidSignature):
            context.keyring.public_key.verify(base64.b64decode(signature), signed + b" ")


def test_waits_grow_fourfold_up_to_half_a_day() -> None:
    seconds = [wait_after(n).total_seconds() for n in range(1, 11)]
    assert seconds == [5, 20, 80, 320, 1280, 5120, 20480, 43200, 43200, 43200]
    assert wait_after(100_000) == timedelta(hours=12)


@pytest.mark.parametrize("answer", [301, 400, 404, 500, 503, OutboundError("No answer in time."), ValueError(URL)])
def test_failures_are_tried_again_later(
    context: Context, receiver: Receiver, deliver: Callable[[], int], clock: Any, answer: int | Exception
) -> None:
    move(context, stored(context), "cancelled")
    receiver.answers[URL] = answer
    assert deliver() == 1
    assert deliver() == 0
    (row,) = told_of(context)
    assert (row.status, row.n_attempts, row.finished_at) == ("pending", 1, None)
    assert row.next_attempt_at is not None
    assert timedelta(seconds=5) <= row.next_attempt_at - clock() <= timedelta(seconds=6.25)
    assert row.last_result
    assert "example" not in row.last_result
    clock.advance(seconds=7)
    del receiver.answers[URL]
    assert deliver() == 1
    (row,) = told_of(context)
    assert (row.status, row.n_attempts, row.last_result) == ("delivered", 2, "HTTP 204")
    assert (row.next_attempt_at, row.finished_at) == (None, clock())


def test_is_given_up_after_the_days_and_one_last_attempt(
    context: Context, receiver: Receiver, deliver: Callable[[], int], clock: Any
) -> None:
    move(context, stored(context), "cancelled")
    receiver.answers[URL] = 404
    started, attempts = clock(), []
    while (row := told_of(context)[0]).next_attempt_at is not None:
        clock.at = max(clock.at, row.next_attempt_at)
        attempts.append(clock() - started)
        assert len(attempts) <= 15
        assert deliver() == 1
    assert (row.status, row.last_result, row.finished_at) == ("given_up", "HTTP 404", clock())
    assert attempts[-1] == timedelta(days=3)
    assert len(attempts) >= 10
    clock.advance(days=10)
    assert deliver() == 0


def test_after_a_long_pause_there_is_still_one_attempt(
    context: Context, receiver: Receiver, deliver: Callable[[], int], clock: Any
) -> None:
    move(context, stored(context), "cancelled")
    clock.advance(days=30)
    assert deliver() == 1
    assert statuses(context) == ["delivered"]


def test_410_ends_what_is_sent_of_the_request_to_the_url(
    context: Context, receiver: Receiver, deliver: Callable[[], int]
) -> None:
    first, second = stored(context, 1), stored(context, 2)
    move(context, first, "unlearning")
    move(context, first, "auditing")
    receiver.answers[URL] = 410
    assert deliver() == 1
    assert statuses(context) == ["disabled", "disabled"]
    move(context, first, "deploying")
    move(context, second, "unlearning")
    del receiver.answers[URL]
    assert deliver() == 1  # the other request's
    assert statuses(context) == ["disabled"] * 3
    assert statuses(context, 2) == ["delivered"]


@pytest.mark.parametrize("answer", [429, 502, 503, 504, OutboundError("No answer in time.")])
def test_one_attempt_finds_out_that_a_receiver_is_down(
    context: Context, receiver: Receiver, deliver: Callable[[], int], clock: Any, answer: int | Exception
) -> None:
    for number in range(1, 6):
        move(context, stored(context, number), "cancelled")
    move(context, stored(context, 6, url="https://well.example/"), "cancelled")
    receiver.answers[URL] = answer
    assert deliver() == 2
    for n_rounds in range(2, 6):
        clock.at = max(row.next_attempt_at for n in range(1, 6) for row in told_of(context, n) if row.next_attempt_at)
        assert deliver() == 1
        assert {row.n_attempts for n in range(1, 6) for row in told_of(context, n)} == {n_rounds}  # waits grow
    clock.advance(hours=1)
    del receiver.answers[URL]
    assert deliver() == 5
    assert [statuses(context, number) for number in range(1, 7)] == [["delivered"]] * 6


def test_an_event_that_a_receiver_chokes_on_does_not_stop_the_others(
    context: Context, receiver: Receiver, clock: Any
) -> None:
    for number in range(1, 5):
        move(context, stored(context, number), "cancelled")

    def send(url: str, headers: Mapping[str, str], body: bytes) -> int:
        if b"batch-0001" in body:
            raise OutboundError("No answer in time.")
        return receiver(url, headers, body)

    for _ in range(3):
        deliver_due(context, send=send, rng=random.Random(0))
        clock.advance(minutes=1)
    assert len(receiver.posts) == 3
    assert statuses(context, 1) == ["pending"]


def test_what_waits_for_a_dead_url_is_given_up_together(
    context: Context, receiver: Receiver, deliver: Callable[[], int], clock: Any
) -> None:
    for number in range(1, 4):
        move(context, stored(context, number), "cancelled")
    receiver.answers[URL] = OutboundError("The host name has no address.")
    clock.advance(days=3)
    assert deliver() == 1
    for number in range(1, 4):
        (row,) = told_of(context, number)
        assert (row.status, row.last_result) == ("given_up", "The host name has no address.")
        assert row.next_attempt_at is None


def test_fresh_events_go_before_those_that_failed(
    context: Context, receiver: Receiver, deliver: Callable[[], int], clock: Any
) -> None:
    move(context, stored(context, 1, url="https://dead.example/"), "cancelled")
    receiver.answers["https://dead.example/"] = OutboundError("No answer in time.")
    deliver()
    clock.advance(minutes=1)
    move(context, stored(context, 2), "cancelled")
    deliver()
    assert [url for url, _, _ in receiver.posts] == ["https://dead.example/", URL, "https://dead.example/"]


def test_deliveries_outlive_the_process(context: Context, settings: Settings, contexts: Any, clock: Any) -> None:
    move(context, stored(context), "cancelled")

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # killed while it waits for the answer
        deliver_due(context, send=killed, rng=random.Random(0))
    receiver = Receiver()
    with contexts(settings, clock) as another:
        assert deliver_due(another, send=receiver, rng=random.Random(0)) == 1
    assert receiver.told() == ["cancelled"]


def test_log_lines_say_request_and_status_only(
    context: Context, receiver: Receiver, deliver: Callable[[], int], clock: Any, log_stream: io.StringIO
) -> None:
    move(context, stored(context), "cancelled")
    for answer in (ValueError(f"{URL} canary"), OutboundError("No answer in time."), 500, 204):
        receiver.answers[URL] = answer
        deliver()
        clock.advance(hours=1)
    lines = [json.loads(line) for line in log_stream.getvalue().splitlines()]
    settled = [line for line in lines if line["event"] != "callback.sender_failed"]
    assert [(line["event"], line["erasure_id"], line["status"]) for line in settled] == [
        ("callback.pending", "batch-0001", None),
        ("callback.pending", "batch-0001", None),
        ("callback.pending", "batch-0001", 500),
        ("callback.delivered", "batch-0001", 204),
    ]
    assert all(line.keys() == {"event", "erasure_id", "status", "level", "timestamp"} for line in settled)
    assert len(lines) - len(settled) == 1
    for word in ("example", "tenant", "canary"):
        assert word not in log_stream.getvalue()


def test_the_thread_delivers_survives_failures_and_stops(
    context: Context, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, arrived = iter([RuntimeError("the database restarts")]), threading.Event()
    real = delivery.deliver_due

    def pass_over(*arguments: Any, **options: Any) -> int:
        for error in passes:
            raise error
        return real(*arguments, **options)

    def send(url: str, headers: Mapping[str, str], body: bytes) -> int:
        arrived.set()
        return receiver(url, headers, body)

    monkeypatch.setattr(delivery, "deliver_due", pass_over)
    with Deliverer(context, send=send, rng=random.Random(0), poll_seconds=0.01):
        move(context, stored(context), "cancelled")
        assert arrived.wait(PATIENCE_SECONDS)
    wait_until(
        lambda: not [thread for thread in threading.enumerate() if thread.name == "callbacks"], "the thread to end"
    )
    assert receiver.told() == ["cancelled"]
    assert statuses(context) == ["delivered"]


def test_a_pass_ends_when_it_is_told_to(context: Context) -> None:
    for number in range(1, 4):
        move(context, stored(context, number), "cancelled")
    stop = threading.Event()

    def send(*_: object) -> int:
        stop.set()
        return 204

    assert deliver_due(context, send=send, rng=random.Random(0), stop=stop) == 1


def test_a_wrong_setting_stops_the_start(context: Context, settings: Settings) -> None:
    wrong = Context(settings.model_copy(update={"callback_allow": "10.0.0.0/99"}), context.engine, context.keyring)
    with pytest.raises(StartupError, match="callback_allow"):
        Deliverer(wrong)


@pytest.fixture
def documented(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[dict[str, Any], int]]:
    """Names of the receiver in the documentation, and the port it listens on."""
    (code,) = re.findall(r"```python\n(.+?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "expunge.pem").write_text(public_keys_pem([context.keyring.public_key]))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "receiver"}
    exec(compile(code, str(DOCUMENT), "exec"), names)  # noqa: S102  (the page is ours)
    monkeypatch.setattr(names["Receiver"], "log_message", lambda *_: None)
    with names["HTTPServer"](("127.0.0.1", 0), names["Receiver"]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield names, server.server_port
        server.shutdown()
        join(thread)


def post_to(port: int, headers: Mapping[str, str], body: bytes) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("POST", "/erasure-events", body, dict(headers))
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_documented_receiver_works_as_it_stands(
    context: Context,
    documented: tuple[dict[str, Any], int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    names, port = documented
    names["time"] = SimpleNamespace(time=lambda: context.now().timestamp())
    posts: list[tuple[Mapping[str, str], bytes]] = []

    def send(_url: str, headers: Mapping[str, str], body: bytes) -> int:
        posts.append((headers, body))
        return post_to(port, headers, body)

    move(context, stored(context), "cancelled")
    assert deliver_due(context, send=send, rng=random.Random(0)) == 1
    assert statuses(context) == ["delivered"]
    ((headers, body),) = posts
    assert post_to(port, headers, body) == 204  # again: acknowledged, and not worked on twice
    assert capfd.readouterr().out.splitlines().count("batch-0001 cancelled") == 1
    old = str(int(headers["webhook-timestamp"]) - 1)
    for forged, content in [
        (headers, body.replace(b"cancelled", b"completed")),
        ({**headers, "webhook-timestamp": old}, body),
        ({**headers, "webhook-id": "msg_other"}, body),
        ({**headers, "webhook-signature": "v1,AAAA"}, body),
        ({**headers, "webhook-signature": "v1a,"}, body),
        ({}, body),
    ]:
        assert post_to(port, forged, content) == 400
    names["seen"].clear()
    with pytest.raises(ValueError, match="replay"):
        names["read_event"](headers, body, context.now().timestamp() + 301)


def test_the_documented_settings_and_states_exist() -> None:
    text = DOCUMENT.read_text()
    assert {name.lower() for name in re.findall(r"EXPUNGE_(\w+)", text)} <= Settings.model_fields.keys()
    assert all(f"`{state}`" in text for state in states.STATES)
