from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.serving.connections import PatientProtocol

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Hasty(PatientProtocol):
    _head_seconds, _most_head_bytes, _last_seconds = 0.1, 300, 0.2
    last: Hasty

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        Hasty.last = self
        super().connection_made(transport)


Scene = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def connected(scene: Scene) -> None:
    """Plays a scene on a connection to a server of hasty protocols."""

    async def main() -> None:
        config = uvicorn.Config(echo, http=Hasty, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        config.load()
        listening = await asyncio.get_running_loop().create_server(
            lambda: Hasty(config=config, server_state=server.server_state, app_state={}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        await asyncio.wait_for(scene(reader, writer), 10)
        writer.close()
        listening.close()

    asyncio.run(main())


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return await reader.readexactly(5)


def test_open_connections_are_counted() -> None:
    before = PatientProtocol.n_open

    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST)
        await read_answer(reader)
        assert PatientProtocol.n_open == before + 1
        Hasty.last.transport.close()
        assert await reader.read() == b""
        assert PatientProtocol.n_open == before

    connected(scene)


@pytest.mark.parametrize("n_before", [0, 2])
@pytest.mark.parametrize("beginning", [b"", b"POST / HTTP/1.1\r\nX-Slow: "])
def test_a_head_that_does_not_come_is_not_waited_for(n_before: int, beginning: bytes) -> None:
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(n_before):
            writer.write(REQUEST)
            assert await read_answer(reader) == b"hello"
        writer.write(beginning)
        if n_before and not beginning:  # between two requests the server's own, longer timeout holds
            await asyncio.sleep(0.3)
            writer.write(REQUEST)
            assert await read_answer(reader) == b"hello"
        else:
            assert await reader.read() == b""

    connected(scene)


@pytest.mark.parametrize("n_before", [0, 1])
def test_a_head_without_end_is_cut_off(n_before: int) -> None:
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(n_before):
            writer.write(REQUEST)
            await read_answer(reader)
        writer.write(b"POST / HTTP/1.1\r\nX: " + b"a" * 400)
        assert await reader.read() == b""

    connected(scene)


def test_a_request_in_flight_when_the_process_ends_is_answered_and_then_it_closes() -> None:
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST)
        await read_answer(reader)
        Hasty.last.shutdown()
        writer.write(REQUEST)
        assert (await reader.read()).endswith(b"hello")

    connected(scene)


def test_an_idle_connection_is_closed_when_the_process_ends() -> None:
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST)
        await read_answer(reader)
        Hasty.last.shutdown()
        assert await reader.read() == b""

    connected(scene)


def test_requests_in_pieces_and_in_a_row_are_answered() -> None:
    async def scene(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for at in range(1, len(REQUEST), 7):
            writer.write(REQUEST[:at])
            await asyncio.sleep(0.001)
            writer.write(REQUEST[at:] + REQUEST)
            assert [await read_answer(reader), await read_answer(reader)] == [b"hello", b"hello"]

    connected(scene)
