"""Load shedding before a request is parsed: predictions are refused where their bytes arrive while the queue is full.

Measured with `python benchmarks/speedups.py early_refusal`: a refusal takes 0.05 ms of processor time instead of
0.17. At four times the load a process bears, three requests of four are refused, so that is a quarter of the answers.
Without this the same requests get the same answer from `service.serving.predict`, behind the HTTP parser, and with a
log line each.

Only a whole head that begins with the one path is looked at; all else goes the usual way, to be refused there. Refusals
are counted like any other answer and logged as one line a second. After refusals the event loop rests for a moment, so
that the next ones are many together: to wake up for each of them, and to take the core and its caches from the model,
costs more than to refuse it. What is computed meanwhile is not held up: the inference thread takes full batches by
itself, and while this process refuses there always is one.

What is private here: the state of uvicorn's protocol (`cycle`, `pipeline`, its keep-alive timer), which tells whether a
connection is between two requests. uvicorn has no public place before its parser.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable

import structlog

from service.errors import TryLaterError
from service.http.content_policy import POLICY
from service.http.problems import problem_of
from service.serving.connections import PatientProtocol
from service.serving.speedups import EARLY_REFUSAL, unavailable

log = structlog.get_logger()

_ID = "{request_id}"
_FIELDS = re.compile(
    rb"\r\n(?:content-length:[ \t]*(\d{1,9})[ \t]*(?=\r\n)|x-request-id:[ \t]*([A-Za-z0-9._-]{1,64})[ \t]*(?=\r\n)|"
    rb"((?:transfer-encoding|expect|connection|upgrade|content-length[^:]*):))",
    re.IGNORECASE,
)
_LOG_SECONDS = 1.0
_REST_SECONDS = 0.004
_PRIVATE = ("cycle", "pipeline", "timeout_keep_alive", "timeout_keep_alive_task")


class SheddingProtocol(PatientProtocol):
    """Answers what `shedding` refuses without parsing it."""

    shedding: Shedding | None = None  # the same for all connections of the process; none: all goes the usual way
    _refused_at = -math.inf  # on the loop's clock
    _n_unread = 0  # bytes of a refused body that are still to come
    _is_between = True  # two requests, as far as the parser read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look whether uvicorn still has what this rests on."""
        super().connection_made(transport)
        missing = [name for name in _PRIVATE if not hasattr(self, name)]
        if self.shedding is not None and missing:
            unavailable(EARLY_REFUSAL, AttributeError(missing[0]))
            type(self).shedding = None

    def data_received(self, data: bytes) -> None:
        """Refuse what is to be refused, else parse."""
        if self._n_unread:
            n_skipped = min(self._n_unread, len(data))
            self._n_unread -= n_skipped
            data = data[n_skipped:]
            if not data:
                return
        if self.shedding is None or not self._is_between or not self._refuses(data, self.shedding):
            super().data_received(data)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_between = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """A body ended."""
        self._is_between = True
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that said nothing for long; one that was only refused has a timer from before."""
        left = self._refused_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._keep_alive_for(left)
        else:
            super().timeout_keep_alive_handler()

    def _refuses(self, data: bytes, shedding: Shedding) -> bool:
        """Whether a request was answered unread; the connection goes on as after any other answer."""
        if self.pipeline or self._is_last or not (self.cycle is None or self.cycle.response_complete):
            return False
        found = shedding.refusal(data)
        if found is None:
            return False
        answer, self._n_unread = found
        self._head_is_there()
        self.transport.write(answer)
        self._refused_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._keep_alive_for(self.timeout_keep_alive)
        return True

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


def protocol_with(refuses: Shedding) -> type[PatientProtocol]:
    """Class of connections that shed load."""

    class Shed(SheddingProtocol):
        shedding = refuses

    return Shed


class Shedding:
    """Refuses posts to one path while `n_free` says 0, or as many were let in just now as there was room for.

    Args:
        path: as it stands in the request line.
        n_free: how many more images may wait.
        error: what the refusal says.
        most_bytes: of a body that is taken in, unread, after its refusal; larger ones go the usual way.
        new_id: for requests that bring none.
        on_refusals: told how many there were, a moment after.
    """

    def __init__(
        self,
        path: str,
        n_free: Callable[[], int],
        error: TryLaterError,
        *,
        most_bytes: int,
        new_id: Callable[[], str],
        on_refusals: Callable[[int], object],
    ) -> None:
        self._start = f"POST {path} HTTP/1.1\r\n".encode()
        self._n_free = n_free
        self._n_let_in = 0  # who have not taken their places yet
        self._most_bytes = most_bytes
        self._new_id = new_id
        self._on_refusals = on_refusals
        self._n_uncounted = self._n_unlogged = 0
        response = problem_of(error, _ID)
        self._before_id, self._after_id = bytes(response.body).split(_ID.encode())
        self._head = (
            f"HTTP/1.1 {response.status_code} Service Unavailable\r\n"
            f"content-type: {response.headers['content-type']}\r\nretry-after: {response.headers['retry-after']}\r\n"
            f"content-security-policy: {POLICY}\r\n"
        ).encode()

    def refusal(self, data: bytes) -> tuple[bytes, int] | None:
        """What to answer at once to a request that begins with `data`, and the bytes of its body still to come.

        None if it is to go the usual way. To be asked between two requests of a connection only.
        """
        if not data.startswith(self._start):
            return None
        if self._n_free() > self._n_let_in:
            self._n_let_in += 1
            if self._n_let_in == 1:
                asyncio.get_running_loop().call_soon(self._soon)
            return None
        end = data.find(b"\r\n\r\n")
        length, given = None, b""
        for field in _FIELDS.finditer(data, 0, end + 2) if end >= 0 else ():
            if field[2]:
                given = field[2]
            elif length is None and field[1]:
                length = int(field[1])
            else:  # a second length, or what makes this more than one plain request
                return None
        if length is None or length > self._most_bytes:
            return None
        n_missing = end + 4 + length - len(data)
        if n_missing < 0:  # another request follows at once
            return None
        request_id = given or self._new_id().encode()
        body = self._before_id + request_id + self._after_id
        self._count()
        return b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            self._head,
            request_id,
            len(body),
            body,
        ), n_missing

    def _soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._have_their_places)  # their first turn is this one or the next

    def _have_their_places(self) -> None:
        self._n_let_in = 0

    def _count(self) -> None:
        self._n_uncounted += 1
        if self._n_uncounted == 1:
            asyncio.get_running_loop().call_soon(self._rest)

    def _rest(self) -> None:
        n, self._n_uncounted = self._n_uncounted, 0
        self._on_refusals(n)
        if not self._n_unlogged:
            asyncio.get_running_loop().call_later(_LOG_SECONDS, self._tell)
        self._n_unlogged += n
        time.sleep(_REST_SECONDS)

    def _tell(self) -> None:
        log.warning("requests.refused", n=self._n_unlogged, status=503)
        self._n_unlogged = 0
