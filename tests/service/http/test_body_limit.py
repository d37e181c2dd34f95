from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from starlette.exceptions import HTTPException

from service.http.body_limit import BodyLimit, OneLinePaths
from service.serving.response_gate import ResponseGate, in_flight_of
from service.serving.slot import InFlight

SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": [], "expunge.request_id": "r"}


def run(app, *, scope=None, bodies=(b"",)):
    """Messages an ASGI app sends."""
    sent, waiting = [], list(bodies)

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    asyncio.run(app({**SCOPE, **(scope or {})}, receive, send))
    return sent


async def echo(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_a_line_break_in_a_path_reaches_the_routes_as_a_space():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["path"])

    for path in ("/v1/a\nb\n", "/v1/plain"):
        run(OneLinePaths(app), scope={"path": path})
    run(OneLinePaths(app), scope={"type": "lifespan", "path": ""})
    assert seen == ["/v1/a b ", "/v1/plain", ""]


def test_bodies_up_to_the_limit_pass():
    assert run(BodyLimit(echo, most_bytes=10), bodies=(b"12345", b"67890"))[1]["body"] == b"1234567890"


def test_a_declared_length_is_refused_before_anything_is_read():
    async def never(scope, receive, send):
        raise AssertionError

    sent = run(BodyLimit(never, most_bytes=10), scope={"headers": [(b"content-length", b"11")]})
    assert sent[0]["status"] == 413
    assert b"at most 10 bytes" in sent[1]["body"]


def test_chunks_beyond_the_limit_break_off():
    with pytest.raises(HTTPException) as caught:
        run(BodyLimit(echo, most_bytes=10), bodies=(b"123456", b"789012", b"never read"))
    assert caught.value.status_code == 413


def test_a_lie_about_the_length_is_found_out():
    with pytest.raises(HTTPException):
        run(BodyLimit(echo, most_bytes=4), scope={"headers": [(b"content-length", b"1")]}, bodies=(b"123456",))


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_other_kinds_pass_through(kind):
    calls = []

    async def app(scope, receive, send):
        calls.append(scope["type"])

    run(BodyLimit(app, most_bytes=1), scope={"type": kind})
    run(ResponseGate(app, slot=SimpleNamespace()), scope={"type": kind})
    assert calls == [kind, kind]


class Slot:
    """Remembers when requests left, relative to what was sent."""

    def __init__(self, *, may_send: bool = True) -> None:
        self.left: list[InFlight] = []
        self._may_send = may_send

    def may_send(self, request: InFlight) -> bool:
        return self._may_send

    def finish(self, request: InFlight) -> None:
        self.left.append(request)


def test_a_request_leaves_after_its_last_byte():
    slot, requests = Slot(), []

    async def app(scope, receive, send):
        requests.append(in_flight_of(scope))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert not slot.left
        await send({"type": "http.response.body", "body": b"x"})
        assert not slot.left

    assert len(run(ResponseGate(app, slot=slot))) == 2
    assert slot.left == requests


def test_a_request_that_breaks_off_leaves_too():
    slot = Slot()

    async def app(scope, receive, send):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(ResponseGate(app, slot=slot))
    assert len(slot.left) == 1


def test_a_response_that_must_not_leave_becomes_a_503():
    sent = run(ResponseGate(echo, slot=Slot(may_send=False)), bodies=(b"old answer",))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"1") in sent[0]["headers"]
    assert b"old answer" not in sent[1]["body"]
