"""Refusals at the socket: the same answer as behind the routes, and nothing else changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest
import structlog
import uvicorn

from service.errors import TryLaterError
from service.http.problems import problem_of
from service.serving.speedups import early_refusal
from service.serving.speedups.early_refusal import Shedding, protocol_with
from tests.waiting import play, until

PATH = "/v1/predictions"
KEEP_ALIVE_SECONDS = 40
SENTENCE = "Expected fewer images to wait here; send this one again."


class Server:
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
async def running_server() -> AsyncIterator[Server]:
    server = Server()

    class Shed(protocol_with(server.shedding)):  # type: ignore[misc]
        def data_received(self, data: bytes) -> None:
            server.n_received += len(data)
            super().data_received(data)

    config = uvicorn.Config(
        server.app, port=0, interface="asgi3", http=Shed, lifespan="off", log_config=None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )  # fmt: skip
    listening = uvicorn.Server(config)
    task = asyncio.create_task(listening._serve())
    await until(lambda: listening.started, "the server to start")
    server.port = listening.servers[0].sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.should_exit = True
        await task


def request(body: bytes = b"image", *, path: str = PATH, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


class Connection:
    """One connection; answers are parsed by h11, so their framing is checked too."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self.reader, self.writer = server, reader, writer

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
        expected = self._server.n_received + len(part)
        self.writer.write(part)
        await until(lambda: self._server.n_received == expected, "the server to receive what was sent")


def connected(talk: Callable[[Server, Connection], Awaitable[None]]) -> None:
    async def run() -> None:
        async with running_server() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await talk(server, Connection(server, reader, writer))
            writer.close()

    play(run())


def test_a_full_server_refuses_as_the_routes_would() -> None:
    async def talk(server: Server, connection: Connection) -> None:
        status, headers, body = await connection.post(request(more="X-Request-ID: mine\r\n"))
        assert (status, headers["retry-after"], headers["x-request-id"]) == (503, "1", "mine")
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(body) == json.loads(bytes(problem_of(TryLaterError(SENTENCE), "mine").body))
        assert (await connection.post(request()))[1]["x-request-id"] == "made"
        assert server.n_refused == 2
        assert server.seen == []

    connected(talk)


def test_who_was_let_in_a_moment_ago_counts_though_it_has_no_place_yet() -> None:
    async def scenario() -> None:
        server = Server()
        server.full, server.n_free = False, 2
        head = request()
        assert [server.shedding.refusal(head) is None for _ in range(4)] == [True, True, False, False]
        await until(lambda: server.n_refused == 2, "the refusals to be told")
        await asyncio.sleep(0)
        assert server.shedding.refusal(head) is None

    play(scenario())


def test_the_connection_serves_on_when_there_is_room_again() -> None:
    async def talk(server: Server, connection: Connection) -> None:
        assert (await connection.post(request()))[0] == 503
        server.full = False
        assert (await connection.post(request(b"let in")))[0] == 200
        server.full = True
        assert (await connection.post(request()))[0] == 503
        assert server.seen == [b"let in"]

    connected(talk)


def test_a_body_in_pieces_is_taken_in_unread() -> None:
    async def talk(server: Server, connection: Connection) -> None:
        whole = request(b"p" * 5000)
        assert (await connection.post(whole[:200], whole[200:3000], whole[3000:]))[0] == 503
        server.full = False
        assert (await connection.post(request(b"next")))[0] == 200
        assert server.seen == [b"next"]

    connected(talk)


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
    async def talk(server: Server, connection: Connection) -> None:
        assert (await connection.post(*parts))[0] == 200
        assert server.n_refused == 0

    connected(talk)


def test_a_body_that_looks_like_a_request_is_a_body() -> None:
    async def talk(server: Server, connection: Connection) -> None:
        inner = request()
        outer = request(inner, path="/other")
        head = outer[: -len(inner)]
        assert (await connection.post(head, inner))[0] == 200
        assert server.n_refused == 0
        assert server.seen == [inner]

    connected(talk)


def test_what_follows_an_early_answer_is_still_the_body() -> None:
    async def talk(server: Server, connection: Connection) -> None:
        inner = request()
        outer = request(inner, path="/early")
        assert (await connection.post(outer[: -len(inner)]))[0] == 200
        await connection.send(inner)
        server.full = False
        assert (await connection.post(request(b"next")))[0] == 200
        assert (server.n_refused, server.seen) == (0, [b"next"])

    connected(talk)


def test_a_connection_that_is_only_refused_is_kept_while_it_is_used() -> None:
    async def talk(_: Server, connection: Connection) -> None:
        loop, ahead = asyncio.get_running_loop(), 0.0
        clock = loop.time
        loop.time = lambda: clock() + ahead
        while ahead < 1.5 * KEEP_ALIVE_SECONDS:
            assert (await connection.post(request()))[0] == 503
            ahead += KEEP_ALIVE_SECONDS / 4

    connected(talk)


def test_without_uvicorn_s_private_state_every_request_goes_the_usual_way_and_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(early_refusal, "_PRIVATE", ("cycle", "gone_in_a_later_version"))

    async def talk(server: Server, connection: Connection) -> None:
        for _ in range(2):
            assert (await connection.post(request()))[0] == 200
        assert server.n_refused == 0

    with structlog.testing.capture_logs() as lines:
        connected(talk)
    (line,) = [each for each in lines if each["event"] == "speedup.unavailable"]
    assert (line["name"], line["error"]) == ("early_refusal", "AttributeError")


def test_a_head_with_two_lengths_is_left_to_the_parser() -> None:
    shedding = Shedding(
        "/v1/predictions", lambda: 0, TryLaterError("Full."), most_bytes=100, new_id=lambda: "i", on_refusals=str
    )
    head = b"POST /v1/predictions HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 50\r\n\r\nabc"
    assert shedding.refusal(head) is None
