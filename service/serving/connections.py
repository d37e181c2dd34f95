"""HTTP connections with an end: to the wait for a request's head, to its length, and to the process's own life.

uvicorn, which BentoML starts, waits for a head as long as the client likes, and keeps all of it that the client sends.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.content_policy import POLICY
from service.http.problems import problem

HEAD_SECONDS = 10.0
HEAD_BYTES = 65_536
LAST_SECONDS = 3.0  # for one more request on an open connection, whose answer says that it is the last
_NO_HTTP = problem(400, "Bad request", "Expected a request in HTTP/1.1.", request_id="")  # none: it gets no log line


class PatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 by httptools, with an end to the wait for a head and to its length.

    A connection that says nothing between two requests is ended by the server's own keep-alive timeout.

    Attributes:
        n_open: connections of this process now.
        is_ending: the process ends; connections that it still takes get one answer at most.
    """

    n_open = 0
    is_ending = False
    _head_seconds, _most_head_bytes, _last_seconds = HEAD_SECONDS, HEAD_BYTES, LAST_SECONDS
    _is_last = False  # the process ends: one more answer at most
    _n_head_bytes = 0
    _is_head_open = True  # of the first request, from the connection on
    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        PatientProtocol.n_open += 1
        super().connection_made(transport)
        self._wait_for_head()
        if self.is_ending:
            self._wait_for_the_last()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        PatientProtocol.n_open -= 1
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, then see whether a head is still open."""
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
        else:
            self._wait_for_the_last()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_head_open = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head ended."""
        self._head_is_there()
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in the shape of every error, and close."""
        body = bytes(_NO_HTTP.body)
        head = (
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: {_NO_HTTP.media_type}\r\ncontent-length: {len(body)}\r\n"
            f"content-security-policy: {POLICY}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _wait_for_the_last(self) -> None:
        if not self._is_last:
            self._is_last = True
            self.loop.call_later(self._last_seconds, self._end_idle)

    def _end_idle(self) -> None:
        if not (self._is_head_open and self._n_head_bytes):  # else it has ten seconds of its own
            super().shutdown()

    def _wait_for_head(self) -> None:
        self._end = self.loop.call_later(self._head_seconds, self.transport.close)

    def _head_is_there(self) -> None:
        self._is_head_open, self._n_head_bytes = False, 0
        if self._end is not None:
            self._end.cancel()
            self._end = None


def use(protocol: type[PatientProtocol]) -> None:
    """Let servers of this process speak HTTP with a protocol; to be called before one is made.

    uvicorn takes such a class as its option `http`, but BentoML, which starts uvicorn, passes no such option on. So the
    class takes the place of the one that uvicorn would choose by itself.
    """
    auto.AutoHTTPProtocol = protocol
