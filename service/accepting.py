"""How a serving process takes connections: a few at a time, the later the more it has, and not for ever.

All serving processes listen at one socket, and the kernel wakes each of them for every connection. asyncio then takes
all that wait: of sixteen connections opened at once one process had fourteen to sixteen, and its clients waited while
the other process had nothing to do. So each process lets the others go first, for a moment that grows with the
connections it holds; whoever holds fewest is the first to come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

HEAD_SECONDS = 10.0  # for the head of a connection's first request
_YIELD_SECONDS = 0.0003  # for each connection held; a busy loop comes back later still
_MOST_YIELDS = 16  # five milliseconds: what opening a connection may cost
_SHARE_AT_ONCE = (
    8  # with many connections an eighth of their number is taken together: it hardly matters to the balance
)


def share_connections(loop: Any, watch: Callable[[Any], Any] = lambda protocol: protocol) -> None:
    """Take connections as the module says, on an asyncio loop; other loops have their own ways, and are left alone.

    Args:
        watch: given each connection's protocol, gives what is to be used instead.
    """
    accept = getattr(loop, "_accept_connection", None)
    if accept is None:
        return
    held: WeakSet[Any] = WeakSet()

    def accept_some(
        protocol: Any, sock: Any, ssl: Any = None, server: Any = None, backlog: int = 1, *rest: Any
    ) -> None:
        def make() -> Any:
            return _with_patience(loop, watch(_counted(protocol(), held)))

        def take() -> None:
            accept(make, sock, ssl, server, max(1, len(held) // _SHARE_AT_ONCE), *rest)

        def come_back() -> None:
            if sock.fileno() >= 0:  # the server was not closed meanwhile
                loop._add_reader(sock.fileno(), loop._accept_connection, protocol, sock, ssl, server, backlog, *rest)
                take()

        if not held:
            take()
            return
        loop._remove_reader(sock.fileno())
        loop.call_later(min(len(held), _MOST_YIELDS) * _YIELD_SECONDS, come_back)

    loop._accept_connection = accept_some


def _counted(protocol: Any, held: WeakSet[Any]) -> Any:
    """The connection's protocol, which is among those held from now until the connection ends."""
    lost = protocol.connection_lost
    held.add(protocol)

    def connection_lost(error: Exception | None) -> None:
        held.discard(protocol)
        lost(error)

    protocol.connection_lost = connection_lost
    return protocol


def _with_patience(loop: asyncio.AbstractEventLoop, protocol: Any) -> Any:
    """The connection's protocol, with an end to the wait for its first request; uvicorn waits as long as it takes."""

    def end_if_silent() -> None:
        transport = getattr(protocol, "transport", None)
        if getattr(protocol, "cycle", transport) is None and transport is not None:  # no head of a request came yet
            transport.close()

    loop.call_later(HEAD_SECONDS, end_if_silent)
    return protocol
