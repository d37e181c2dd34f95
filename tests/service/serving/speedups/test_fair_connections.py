"""Connections shared among processes at one socket: who holds more comes later."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from service.launch import free_ports
from service.serving.speedups.fair_connections import FairServer, share_connections
from tests.waiting import play, until


class Loop:
    """What the server asks of a loop; connections come when told, and are held from then on."""

    def __init__(self) -> None:
        self.reading: dict[Any, Callable[[], None]] = {}
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.n_held = 0

    def add_reader(self, sock: Any, callback: Callable[[], None]) -> None:
        self.reading[sock] = callback

    def remove_reader(self, sock: Any) -> None:
        del self.reading[sock]

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.later.append((seconds, callback))

    def create_task(self, begun: Any) -> Task:
        begun.close()
        self.n_held += 1
        return Task()

    def wake(self) -> tuple[float, int]:
        """A connection waits: gives for how long it was left to others, and how many were taken then."""
        (callback,), n_before = self.reading.values(), self.n_held
        callback()
        seconds = 0.0
        while self.later:
            seconds, come_back = self.later.pop()
            assert not self.reading  # it sleeps
            come_back()
        return seconds, self.n_held - n_before


class Task:
    def add_done_callback(self, _: Any) -> None: ...


class Socket:
    """A listening socket at which as many connections wait as one likes."""

    error: OSError | None = None

    def setblocking(self, _: bool) -> None: ...
    def listen(self, _: int) -> None: ...
    def close(self) -> None: ...

    def accept(self) -> tuple[Socket, None]:
        if self.error is not None:
            raise self.error
        return Socket(), None


def listening(loop: Loop, sock: Socket) -> FairServer:
    return FairServer(loop, asyncio.Protocol, sock, lambda: loop.n_held)  # type: ignore[arg-type]


def test_the_first_connection_is_taken_at_once() -> None:
    loop = Loop()
    listening(loop, Socket())
    assert loop.wake() == (0.0, 1)


def test_who_holds_more_comes_later_up_to_some_milliseconds() -> None:
    loop = Loop()
    listening(loop, Socket())
    waits = [loop.wake()[0] for _ in range(40)]
    assert waits[:17] == sorted(set(waits[:17]))
    assert set(waits[16:]) == {waits[16]}
    assert waits[16] < 0.01


def test_with_many_connections_several_are_taken_together() -> None:
    loop = Loop()
    listening(loop, Socket())
    taken = [loop.wake()[1] for _ in range(60)]
    assert taken[:16] == [1] * 16
    assert taken[-1] == (loop.n_held - taken[-1]) // 8 > 5


def test_ended_connections_do_not_count() -> None:
    loop = Loop()
    listening(loop, Socket())
    for _ in range(5):
        loop.wake()
    loop.n_held = 0
    assert loop.wake() == (0.0, 1)


def test_a_closed_server_is_not_come_back_to() -> None:
    loop = Loop()
    server = listening(loop, Socket())
    loop.wake()
    (callback,) = loop.reading.values()
    loop.reading.clear()
    callback_later = loop.later
    loop.add_reader(server.sockets[0], callback)
    callback()
    loop.add_reader(server.sockets[0], callback)
    server.close()
    callback_later.pop()[1]()
    assert (loop.reading, loop.n_held, server.sockets) == ({}, 1, ())


def test_a_connection_that_another_process_took_is_not_waited_for() -> None:
    loop, sock = Loop(), Socket()
    listening(loop, sock)
    sock.error = BlockingIOError()
    assert loop.wake() == (0.0, 0)


def test_with_too_many_files_open_it_tries_again_later_and_a_line_says_so() -> None:
    loop, sock = Loop(), Socket()
    listening(loop, sock)
    sock.error = OSError(errno.EMFILE, "Too many open files")
    (callback,) = loop.reading.values()
    with structlog.testing.capture_logs() as lines:
        callback()
    assert loop.reading == {}
    assert [line["event"] for line in lines] == ["connections.not_accepted"]
    sock.error = None
    loop.later.pop()[1]()
    assert (len(loop.reading), loop.n_held) == (1, 1)


class Counting(asyncio.Protocol):
    """A connection that answers what it is sent."""

    def __init__(self, held: set[asyncio.Protocol]) -> None:
        self._held = held

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._held.add(self)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._held.discard(self)


def test_two_at_one_socket_share_its_connections() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        sock = socket.create_server(("127.0.0.1", 0))
        address = sock.getsockname()
        held: list[set[asyncio.Protocol]] = [set(), set()]
        makes = [lambda: Counting(held[0]), lambda: Counting(held[1])]
        counts = [lambda: len(held[0]), lambda: len(held[1])]
        servers = [FairServer(loop, makes[i], each, counts[i]) for i, each in enumerate((sock, sock.dup()))]
        pairs = [await asyncio.open_connection(*address) for _ in range(16)]
        for number, (reader, writer) in enumerate(pairs):
            writer.write(b"%02d" % number)
            assert await reader.readexactly(2) == b"%02d" % number
        assert len(held[0]) + len(held[1]) == 16
        assert min(map(len, held)) >= 4
        for server in servers:
            server.close()
        for _, writer in pairs:
            writer.close()
        for server in servers:
            await server.wait_closed()
        assert held == [set(), set()]

    asyncio.run(scenario())


def test_the_last_process_takes_what_waits_and_then_nobody_can_connect() -> None:
    """BentoML's parent keeps the socket open: whoever connects to it then would be accepted by the system and reset."""

    async def scenario() -> None:
        loop, held = asyncio.get_running_loop(), set[asyncio.Protocol]()
        sock = socket.create_server(("127.0.0.1", free_ports(1)[0]))  # chosen, as a service's is
        parent, address = sock.dup(), sock.getsockname()
        left = 2

        def ends() -> bool:
            nonlocal left
            left -= 1
            return left == 0

        servers = [FairServer(loop, lambda: Counting(held), each, lambda: 0, ends) for each in (sock.dup(), sock)]
        servers[0].close()
        clients = [socket.create_connection(address) for _ in range(20)]
        servers[1].close()
        for number, client in enumerate(clients):
            client.setblocking(False)
            await loop.sock_sendall(client, b"%02d" % number)
            assert await loop.sock_recv(client, 2) == b"%02d" % number
            client.close()
        await until(lambda: not held, "the connections to end")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        again = FairServer(loop, lambda: Counting(held), parent, lambda: 0)  # by a process that BentoML starts anew
        socket.create_connection(address).close()
        again.close()

    play(scenario())


def test_a_process_ends_after_the_connections_that_it_took_last() -> None:
    """They are begun after uvicorn has looked whether there are any."""

    async def scenario() -> None:
        loop, held = asyncio.get_running_loop(), set[asyncio.Protocol]()
        sock = socket.create_server(("127.0.0.1", free_ports(1)[0]))
        server = FairServer(loop, lambda: Counting(held), sock, lambda: len(held), lambda: True)
        client = socket.create_connection(sock.getsockname())
        server.close()
        assert not held  # taken, not begun
        ended = loop.create_task(server.wait_closed())
        client.setblocking(False)
        await loop.sock_sendall(client, b"xy")
        assert await loop.sock_recv(client, 2) == b"xy"
        assert not ended.done()
        client.close()
        await ended
        assert not held

    play(scenario())


def test_a_process_that_ends_alone_leaves_the_socket_to_the_others() -> None:
    async def scenario() -> None:
        loop, held = asyncio.get_running_loop(), set[asyncio.Protocol]()
        sock = socket.create_server(("127.0.0.1", 0))
        servers = [FairServer(loop, lambda: Counting(held), each, lambda: 0) for each in (sock, sock.dup())]
        address = sock.getsockname()
        servers[0].close()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"xy")
        assert await reader.readexactly(2) == b"xy"
        writer.close()
        await until(lambda: not held, "the connection to end")
        servers[1].close()

    play(scenario())


def test_servers_of_a_given_socket_are_fair_ones_and_others_are_the_loops_own() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        share_connections(loop, lambda: 0)
        fair: Any = await loop.create_server(asyncio.Protocol, sock=socket.create_server(("127.0.0.1", 0)), ssl=None)
        own: Any = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        assert [type(fair), type(own)] == [FairServer, asyncio.base_events.Server]
        fair.close()
        own.close()

    asyncio.run(scenario())


def test_a_loop_that_cannot_be_changed_goes_its_own_way_and_a_line_says_so() -> None:
    class Fixed:
        __slots__ = ()

        def create_server(self) -> None: ...

    with structlog.testing.capture_logs() as lines:
        share_connections(Fixed(), lambda: 0)  # type: ignore[arg-type]
    assert [(line["event"], line["name"]) for line in lines] == [("speedup.unavailable", "fair_connections")]
