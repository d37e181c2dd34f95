"""Connections of a serving process: shared fairly among the processes, and ended when a client keeps it waiting.

What the server under BentoML (uvicorn on asyncio) leaves open: it takes every connection that waits, so that one
process may get them all; it waits for a request's head as long as the client likes, and keeps all of it that it sends.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any
from weakref import WeakSet

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.serving.load_shedding import Shedding

HEAD_SECONDS = 10.0
HEAD_BYTES = 65_536
LAST_SECONDS = 0.25  # for a request that was sent before its client could know that we end
_YIELD_SECONDS = 0.0003  # for each connection held; a busy loop comes back later still
_MOST_YIELDS = 16  # five milliseconds: what opening a connection may cost
_SHARE_AT_ONCE = (
    8  # with many connections an eighth of their number is taken together: it hardly matters to the balance
)


class PatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 by httptools, with an end to the wait for a head and to its length.

    A connection that says nothing between two requests is ended by the server's own keep-alive timeout.
    """

    _head_seconds, _most_head_bytes, _last_seconds = HEAD_SECONDS, HEAD_BYTES, LAST_SECONDS
    _is_last = False  # the process ends: one more answer at most
    shedding: Shedding | None = None  # the same for all connections of the process
    _refused_at = -math.inf  # on the loop's clock
    _n_head_bytes = 0
    _n_unread = 0  # bytes of a refused body that are still to come
    _is_between = True  # two requests, as far as the parser read
    _is_head_open = True  # of the first request, from the connection on
    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(_Joining(transport, self.loop))  # type: ignore[arg-type]
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse what cannot be taken; else parse, then see whether a head is still open."""
        if self._n_unread:
            n_skipped = min(self._n_unread, len(data))
            self._n_unread -= n_skipped
            data = data[n_skipped:]
            if not data:
                return
        if self.shedding is not None and self._is_between and self._refuses(data):
            return
        super().data_received(data)
        if self._is_head_open:
            self._n_head_bytes += len(data)
            if self._n_head_bytes > self._most_head_bytes:
                self.transport.close()
            elif self._end is None:
                self._wait_for_head()

    def shutdown(self) -> None:
        """The process ends: answer what came, also what is just coming, then close."""
        if self.cycle is not None and not self.cycle.response_complete:
            super().shutdown()
            return
        self._is_last = True
        self.loop.call_later(self._last_seconds, super().shutdown)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_head_open, self._is_between = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head ended."""
        self._head_is_there()
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """A body ended."""
        self._is_between = True
        super().on_message_complete()

    def _refuses(self, data: bytes) -> bool:
        """Whether a request was answered unread; the connection goes on as after any other answer."""
        if self.shedding is None or self.pipeline or not (self.cycle is None or self.cycle.response_complete):
            return False
        found = self.shedding.refusal(data)
        if found is None:
            return False
        answer, self._n_unread = found
        self._head_is_there()
        self.transport.write_at_once(answer)  # type: ignore[attr-defined]
        self._refused_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._keep_alive_for(self.timeout_keep_alive)
        return True

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that said nothing for long; one that was only refused has a timer from before."""
        left = self._refused_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._keep_alive_for(left)
        else:
            super().timeout_keep_alive_handler()

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _wait_for_head(self) -> None:
        self._end = self.loop.call_later(self._head_seconds, self.transport.close)

    def _head_is_there(self) -> None:
        self._is_head_open, self._n_head_bytes = False, 0
        if self._end is not None:
            self._end.cancel()
            self._end = None


class _Joining:
    """A transport that sends an answer's head together with its body: half the system calls, and half the packets.

    What is written first in a turn of the event loop waits for what is written next, at most until the turn ends. So
    an answer is with the system when its body was written, as without this.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._first = b""
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send it, or keep it for a moment."""
        if self._first:
            first, self._first = self._first, b""
            self._transport.write(first + data)
        elif data:
            self._first = data
            self._loop.call_soon(self._send_first)

    def write_at_once(self, data: bytes) -> None:
        """Send it: nothing follows."""
        self._send_first()
        self._transport.write(data)

    def close(self) -> None:
        """End the connection when all was sent."""
        self._send_first()
        self._transport.close()

    def _send_first(self) -> None:
        if self._first:
            first, self._first = self._first, b""
            if not self._transport.is_closing():
                self._transport.write(first)


def be_patient_within_limits() -> None:
    """Let servers of this process use `PatientProtocol`; to be called before one is made."""
    auto.AutoHTTPProtocol = PatientProtocol


def shed_by(shedding: Shedding) -> None:
    """Let all connections of this process refuse what cannot be taken."""
    PatientProtocol.shedding = shedding


def share_connections(loop: Any) -> None:
    """Leave connections to the processes that hold fewer; on asyncio's loop, others have their own ways.

    All serving processes listen at one socket, and the kernel wakes each of them for every connection. asyncio then
    takes all that wait: of sixteen opened at once one process had fourteen to sixteen, and their clients waited while
    the other process had nothing to do. So a process lets the others go first, for a moment that grows with the
    connections it holds, and takes few at a time.
    """
    accept = getattr(loop, "_accept_connection", None)
    if accept is None:
        return
    held: WeakSet[Any] = WeakSet()

    def accept_some(
        protocol: Any, sock: Any, ssl: Any = None, server: Any = None, backlog: int = 1, *rest: Any
    ) -> None:
        def take() -> None:
            accept(lambda: _counted(protocol(), held), sock, ssl, server, max(1, len(held) // _SHARE_AT_ONCE), *rest)

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
