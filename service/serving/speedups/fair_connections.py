"""Connections shared fairly among the serving processes: who holds more takes the next one later.

All serving processes listen at one socket, and the kernel wakes each of them for every connection. asyncio then takes
all that wait, so one process may hold nearly all connections, and their clients wait while the other has nothing to do.
Here a process lets the others go first, for a moment that grows with the connections it holds, and takes few at a time.

Measured with `python benchmarks/speedups.py fair_connections`: of sixteen connections opened at once, the fuller of two
processes holds 8 to 10 instead of 9 to 16, in the median 8 instead of 16. With all connections at one of two processes
the other's core is idle, so this is worth up to a factor of two.

What is private here: `create_server` of the running event loop is replaced, since BentoML passes no loop and no server
of ours to uvicorn. What takes its place uses asyncio's public interface only.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from service.serving.speedups import FAIR_CONNECTIONS, unavailable

log = structlog.get_logger()

_YIELD_SECONDS = 0.0003  # for each connection held; a busy loop comes back later still
_MOST_YIELDS = 16  # five milliseconds: what opening a connection may cost
_SHARE_AT_ONCE = (
    8  # with many connections an eighth of their number is taken together: it hardly matters to the balance
)
_ALL = 1 << 16  # more than any socket lets wait
_LOOK_SECONDS = 0.05  # whether the last connections are gone
_MOST_SECONDS = 15.0  # longer than a connection may take for its last request's head
_RETRY_SECONDS = 1.0  # after an error such as too many open files


class FairServer:
    """A listening socket whose connections are left to processes that hold fewer: what uvicorn needs of a server.

    Args:
        loop: calls back.
        make: gives the protocol of a connection.
        sock: listens, or will.
        n_held: how many connections this process holds now.
        ends: told when this process takes no more; gives whether no other process takes connections of the socket.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        n_held: Callable[[], int],
        ends: Callable[[], bool] = lambda: False,
        *,
        backlog: int = 100,
    ) -> None:
        self._loop = loop
        self._make = make
        self._sock: socket.socket | None = sock
        self._n_held = n_held
        self._ends = ends
        self._tasks: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        sock.listen(backlog)
        loop.add_reader(sock, self._wake)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """Where it listens; nowhere once it was closed."""
        return () if self._sock is None else (self._sock,)

    def close(self) -> None:
        """Take no more connections; those there are go on.

        The last process takes those that wait, and ends the socket for the whole service: BentoML's parent has it open
        for some seconds more, in which connections would be accepted by the system and then reset. First it lets no
        more wait, for whoever comes between the taking and the end would be reset as well.
        """
        if self._sock is None:
            return
        self._loop.remove_reader(self._sock)
        if self._ends():
            self._sock.listen(0)
            self._take(_ALL)
            with suppress(OSError):  # another process was the last one as well
                self._sock.shutdown(socket.SHUT_RD)
        self._sock.close()
        self._sock = None

    async def wait_closed(self) -> None:
        """Return once the connections of this process are gone, or after some seconds.

        uvicorn asks its own list of connections before, but one that was just taken is not in it yet: without this a
        process that gets the processor late would end before it has begun it.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_MOST_SECONDS):
                while self._tasks or self._n_held():
                    await asyncio.sleep(_LOOK_SECONDS)

    def _wake(self) -> None:
        """A connection waits."""
        n_held = self._n_held()
        if n_held:
            self._rest(min(n_held, _MOST_YIELDS) * _YIELD_SECONDS)
        else:
            self._take(1)

    def _rest(self, seconds: float) -> None:
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._loop.call_later(seconds, self._come_back)

    def _come_back(self) -> None:
        if self._sock is not None:
            self._loop.add_reader(self._sock, self._wake)
            self._take(max(1, self._n_held() // _SHARE_AT_ONCE))

    def _take(self, most: int) -> None:
        for _ in range(most):
            if self._sock is None:
                return
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # another process was first, or the client went away
            except OSError as error:
                log.error("connections.not_accepted", error=type(error).__name__, errno=error.errno)
                self._rest(_RETRY_SECONDS)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._begin(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError:
            connection.close()


def share_connections(
    loop: asyncio.AbstractEventLoop, n_held: Callable[[], int], ends: Callable[[], bool] = lambda: False
) -> None:
    """Let servers that the loop makes from now on, of a socket that is given to them, be fair ones.

    Args:
        n_held, ends: as of `FairServer`.
    """
    create_server = loop.create_server

    async def create(
        make: Callable[[], asyncio.BaseProtocol], *places: Any, **options: Any
    ) -> asyncio.AbstractServer | FairServer:
        sock, backlog = options.pop("sock", None), options.pop("backlog", 100)
        if sock is None or places or any(options.values()):  # TLS and the like
            return await create_server(make, *places, sock=sock, backlog=backlog, **options)
        return FairServer(loop, make, sock, n_held, ends, backlog=backlog)

    try:
        loop.create_server = create  # type: ignore[method-assign,assignment]
    except AttributeError as error:  # a loop that is not written in Python
        unavailable(FAIR_CONNECTIONS, error)
