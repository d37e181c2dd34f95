"""Refusals at the socket: the same answer as behind the routes, and nothing else changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest
import uvicorn

from service.errors import TryLaterError
from service.http.problems import problem_of
from service.serving.connections import PatientProtocol
from service.serving.load_shedding import Shedding
from tests.waiting import play, until

PATH = "/v1/predictions"
KEEP_ALIVE_SECONDS = 40
SENTENCE = "Expected fewer images to wait here; send this one again."


class House:
    """A server that is full or not, and counts what it refused."""

    def __init__(self) -> None:
        self.full = True
        self.n_free = 100
        self.n_refused = 0
        self.seen: list[bytes] = []
        self.shedding = Shedding(
            PATH,
            lambda: 0 if self.full else self.n_free,
            TryLaterError(SENTENCE),
            most_bytes=10_000,
            new_id=lambda: "made",
            on_refusals=self._refused,
        )
        self.port = 0
        self.n_received = 0  # bytes

    def _refused(self, n: int) -> None:
        self.n_refused += n

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/early":
            await self._answer(send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.seen.append(body)
        await self._answer(send)

    async def _answer(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def open_house() -> AsyncIterator[House]:
    house = House()

    class Shed(PatientProtocol):
        shedding = house.shedding

        def data_received(self, data: bytes) -> None:
            house.n_received += len(data)
            super().data_received(data)

    config = uvicorn.Config(
        house.app,
        port=0,
        interface="asgi3",
        http=Shed,
        lifespan="off",
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    await until(lambda: server.started, "the server to start")
    house.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield house
    finally:
        server.should_exit = True
        await task


def request(body: bytes = b"picture", *, path: str = PATH, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


class Caller:
    """One connection; answers are parsed by h11, so their framing is checked too."""

    def __init__(self, house: House, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._house, self.reader, self.writer = house, reader, writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        conn, body = h11.Connection(h11.CLIENT), b""
        conn.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
        conn.send(h11.EndOfMessage())
        head: h11.Response | None = None
        while True:
            event = conn.next_event()
            if event is h11.NEED_DATA:
                conn.receive_data(await self.reader.read(65536))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return head.status_code, {k.decode(): v.decode() for k, v in head.headers}, body

    async def post(self, *parts: bytes) -> tuple[int, dict[str, str], bytes]:
        for part in parts:
            await self.send(part)
        return await self.answer()

    async def send(self, part: bytes) -> None:
        """Send something and wait until the server has got it."""
        expected = self._house.n_received + len(part)
        self.writer.write(part)
        await until(lambda: self._house.n_received == expected, "the server to receive what was sent")


def visit(talk: Callable[[House, Caller], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_house() as house:
            reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
            await talk(house, Caller(house, reader, writer))
            writer.close()

    play(run())


def test_a_full_house_refuses_as_the_routes_would() -> None:
    async def talk(house: House, caller: Caller) -> None:
        status, headers, body = await caller.post(request(more="X-Request-ID: mine\r\n"))
        assert (status, headers["retry-after"], headers["x-request-id"]) == (503, "1", "mine")
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(body) == json.loads(bytes(problem_of(TryLaterError(SENTENCE), "mine").body))
        assert (await caller.post(request()))[1]["x-request-id"] == "made"
        assert house.n_refused == 2
        assert house.seen == []

    visit(talk)


def test_who_was_let_in_a_moment_ago_counts_though_it_has_no_place_yet() -> None:
    async def scene() -> None:
        house = House()
        house.full, house.n_free = False, 2
        head = request()
        assert [house.shedding.refusal(head) is None for _ in range(4)] == [True, True, False, False]
        await until(lambda: house.n_refused == 2, "the refusals to be told")
        await asyncio.sleep(0)
        assert house.shedding.refusal(head) is None

    play(scene())


def test_the_connection_serves_on_when_there_is_room_again() -> None:
    async def talk(house: House, caller: Caller) -> None:
        assert (await caller.post(request()))[0] == 503
        house.full = False
        assert (await caller.post(request(b"let in")))[0] == 200
        house.full = True
        assert (await caller.post(request()))[0] == 503
        assert house.seen == [b"let in"]

    visit(talk)


def test_a_body_in_pieces_is_taken_in_unread() -> None:
    async def talk(house: House, caller: Caller) -> None:
        whole = request(b"p" * 5000)
        assert (await caller.post(whole[:200], whole[200:3000], whole[3000:]))[0] == 503
        house.full = False
        assert (await caller.post(request(b"next")))[0] == 200
        assert house.seen == [b"next"]

    visit(talk)


@pytest.mark.parametrize(
    "parts",
    [
        (request(path="/v1/erasure-requests"),),
        (request(b"p" * 10_001),),
        (request()[:30], request()[30:]),  # a head in pieces
        (request(more="Connection: close\r\n"),),
        (request() + request(),),
        (f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n".encode(),),
    ],
    ids=["another path", "a large body", "a head in pieces", "the last request", "two at once", "chunks"],
)
def test_all_else_goes_the_usual_way(parts: tuple[bytes, ...]) -> None:
    async def talk(house: House, caller: Caller) -> None:
        assert (await caller.post(*parts))[0] == 200
        assert house.n_refused == 0

    visit(talk)


def test_a_body_that_looks_like_a_request_is_a_body() -> None:
    async def talk(house: House, caller: Caller) -> None:
        inner = request()
        outer = request(inner, path="/other")
        head = outer[: -len(inner)]
        assert (await caller.post(head, inner))[0] == 200
        assert house.n_refused == 0
        assert house.seen == [inner]

    visit(talk)


def test_what_follows_an_early_answer_is_still_the_body() -> None:
    async def talk(house: House, caller: Caller) -> None:
        inner = request()
        outer = request(inner, path="/early")
        assert (await caller.post(outer[: -len(inner)]))[0] == 200
        await caller.send(inner)
        house.full = False
        assert (await caller.post(request(b"next")))[0] == 200
        assert (house.n_refused, house.seen) == (0, [b"next"])

    visit(talk)


def test_a_connection_that_is_only_refused_is_kept_while_it_is_used() -> None:
    async def talk(_: House, caller: Caller) -> None:
        loop, ahead = asyncio.get_running_loop(), 0.0
        clock = loop.time
        loop.time = lambda: clock() + ahead
        while ahead < 1.5 * KEEP_ALIVE_SECONDS:
            assert (await caller.post(request()))[0] == 503
            ahead += KEEP_ALIVE_SECONDS / 4

    visit(talk)


def test_a_head_with_two_lengths_is_left_to_the_parser() -> None:
    shedding = Shedding(
        "/v1/predictions", lambda: 0, TryLaterError("Full."), most_bytes=100, new_id=lambda: "i", on_refusals=str
    )
    head = b"POST /v1/predictions HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 50\r\n\r\nabc"
    assert shedding.refusal(head) is None
