"""Load shedding: while as many images wait as may, predictions are refused where their bytes arrive.

At four times the load that a process bears three requests of four are refused, and what a refusal costs is missing for
the answers. Behind parser, key, routes and log it costs a tenth of an answer and more; here it is a look at the first
bytes and one write. Refusals are counted like any other answer and logged as one line a second.

Only a whole head that begins with the one path is looked at; all else goes the usual way, to be refused there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import structlog

from service.errors import TryLaterError
from service.problems import problem_of

log = structlog.get_logger()

_ID = "{request_id}"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*(?=\r\n)", re.IGNORECASE)
_GIVEN_ID = re.compile(rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._-]{1,64})[ \t]*\r\n", re.IGNORECASE)
_OTHERWISE = re.compile(rb"\r\n(?:transfer-encoding|expect|connection|upgrade|content-length[^:]+):", re.IGNORECASE)
_LOG_SECONDS = 1.0


class Shedding:
    """Refuses posts to one path while `is_full` says so.

    Args:
        path: as it stands in the request line.
        is_full: whether no more images may wait.
        error: what the refusal says.
        most_bytes: of a body that is taken in, unread, after its refusal; larger ones go the usual way.
        new_id: for requests that bring none.
        on_refusal: told of each.
    """

    def __init__(
        self,
        path: str,
        is_full: Callable[[], bool],
        error: TryLaterError,
        *,
        most_bytes: int,
        new_id: Callable[[], str],
        on_refusal: Callable[[], object],
    ) -> None:
        self._start = f"POST {path} HTTP/1.1\r\n".encode()
        self._is_full = is_full
        self._most_bytes = most_bytes
        self._new_id = new_id
        self._on_refusal = on_refusal
        self._n_unlogged = 0
        response = problem_of(error, _ID)
        self._before_id, self._after_id = bytes(response.body).split(_ID.encode())
        self._head = (
            f"HTTP/1.1 {response.status_code} Service Unavailable\r\n"
            f"content-type: {response.headers['content-type']}\r\nretry-after: {response.headers['retry-after']}\r\n"
        ).encode()

    def refusal(self, data: bytes) -> tuple[bytes, int] | None:
        """What to answer at once to a request that begins with `data`, and the bytes of its body still to come.

        None if it is to go the usual way. To be asked between two requests of a connection only.
        """
        if not self._is_full() or not data.startswith(self._start):
            return None
        end = data.find(b"\r\n\r\n")
        lengths = _LENGTH.findall(data, 0, end + 2) if end >= 0 else []
        if len(lengths) != 1 or _OTHERWISE.search(data, 0, end + 2):
            return None
        n_missing = end + 4 + int(lengths[0]) - len(data)
        if int(lengths[0]) > self._most_bytes or n_missing < 0:  # negative: another request follows at once
            return None
        given = _GIVEN_ID.search(data, 0, end + 2)
        request_id = given[1] if given else self._new_id().encode()
        body = self._before_id + request_id + self._after_id
        self._count()
        return b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            self._head,
            request_id,
            len(body),
            body,
        ), n_missing

    def _count(self) -> None:
        self._on_refusal()
        self._n_unlogged += 1
        if self._n_unlogged == 1:
            asyncio.get_running_loop().call_later(_LOG_SECONDS, self._tell)

    def _tell(self) -> None:
        log.warning("requests.refused", n=self._n_unlogged, status=503)
        self._n_unlogged = 0
