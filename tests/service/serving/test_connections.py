from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.serving.connections import PatientProtocol
from tests.waiting import PATIENCE_SECONDS, play, until

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Hasty(PatientProtocol):
    """Its times are long, for a machine that is busy; a test that lets them pass makes them short."""

    _head_seconds, _most_head_bytes, _last_seconds = PATIENCE_SECONDS, 300, PATIENCE_SECONDS
    last: Hasty
    n_received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        Hasty.last = self
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.n_received += len(data)
        super().data_received(data)


SHORT_SECONDS = 0.05


Scenario = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def connected(scenario: Scenario) -> None:
    """Plays a scenario on a connection to a server of hasty protocols."""

    async def main() -> None:
        config = uvicorn.Config(
            echo, http=Hasty, lifespan="off", log_config=None, timeout_keep_alive=int(PATIENCE_SECONDS)
        )
        server = uvicorn.Server(config)
        config.load()
        listening = await asyncio.get_running_loop().create_server(
            lambda: Hasty(config=config, server_state=server.server_state, app_state={}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        await scenario(reader, writer)
        writer.close()
        listening.close()

    play(main())


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return await reader.readexactly(5)


async def is_ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:  # it was ended before all was sent
        return True


def test_open_connections_are_counted() -> None:
    before = PatientProtocol.n_open

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST)
        await read_answer(reader)
        assert PatientProtocol.n_open == before + 1
        Hasty.last.transport.close()
        assert await reader.read() == b""
        assert PatientProtocol.n_open == before

    connected(scenario)


@pytest.mark.parametrize("n_before", [0, 2])
@pytest.mark.parametrize("beginning", [b"", b"POST / HTTP/1.1\r\nX-Slow: "])
def test_a_head_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, n_before: int, beginning: bytes
) -> None:
    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(n_before):
            writer.write(REQUEST)
            assert await read_answer(reader) == b"hello"
        monkeypatch.setattr(Hasty, "_head_seconds", SHORT_SECONDS)
        later, later_writer = await asyncio.open_connection(*writer.get_extra_info("peername"))
        if not n_before:
            later_writer.write(beginning)
            assert await is_ended(later)
        elif beginning:
            writer.write(beginning)
            assert await is_ended(reader)
        else:  # between two requests the server's own, longer timeout holds
            assert await is_ended(later)  # which began to wait for a head after this one would have
            writer.write(REQUEST)
            assert await read_answer(reader) == b"hello"
        later_writer.close()

    connected(scenario)


@pytest.mark.parametrize("n_before", [0, 1])
def test_a_head_without_end_is_cut_off(n_before: int) -> None:
    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(n_before):
            writer.write(REQUEST)
            await read_answer(reader)
        writer.write(b"POST / HTTP/1.1\r\nX: " + b"a" * 400)
        assert await reader.read() == b""

    connected(scenario)


def test_a_request_in_flight_when_the_process_ends_is_answered_and_then_it_closes() -> None:
    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST)
        await read_answer(reader)
        Hasty.last.shutdown()
        writer.write(REQUEST)
        assert (await reader.read()).endswith(b"hello")

    connected(scenario)


def test_an_idle_connection_is_closed_when_the_process_ends() -> None:
    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST)
        await read_answer(reader)
        Hasty.last._last_seconds = SHORT_SECONDS
        Hasty.last.shutdown()
        assert await reader.read() == b""

    connected(scenario)


def test_a_head_that_has_begun_is_waited_for_when_the_process_ends() -> None:
    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST[:10])
        await until(lambda: Hasty.last.n_received == 10, "the head to begin")
        Hasty.last.shutdown()
        Hasty.last._end_idle()  # as after the last seconds
        writer.write(REQUEST[10:])
        assert (await reader.read()).endswith(b"hello")

    connected(scenario)


def test_a_connection_that_comes_when_the_process_ends_has_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatientProtocol, "is_ending", True)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST)
        answer = await reader.read()
        assert b"connection: close" in answer
        assert answer.endswith(b"hello")

    connected(scenario)


def test_requests_in_pieces_and_in_a_row_are_answered() -> None:
    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for at in range(1, len(REQUEST), 7):
            n_before = Hasty.last.n_received
            writer.write(REQUEST[:at])
            await until(lambda n=n_before + at: Hasty.last.n_received == n, "the first piece to arrive")
            writer.write(REQUEST[at:] + REQUEST)
            assert [await read_answer(reader), await read_answer(reader)] == [b"hello", b"hello"]

    connected(scenario)
