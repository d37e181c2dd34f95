"""Log lines for people or machines, one line a request, and the id that ties a caller's request to them.

A request line has the route's template, never the raw path or query, and no body. Standard library loggers (the
server's, the database's) pass through the same redaction.

What holds the lines of several processes together: `request_id` is the call's (`X-Request-ID`), `erasure_ids` the
numbers of erasure requests, `run_id` the run's. The line of the call that filed requests has the first and the second,
each line of a run and its audits the second and the third.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Literal, TextIO

import structlog
from pydantic_core import PydanticSerializationError, to_json

from service.telemetry.redact import place_of_error, redact

_TALKATIVE = ("sqlalchemy", "httpx", "httpx2", "httpcore", "httpcore2", "uvicorn.access")
"""Their INFO lines hold values, addresses, raw paths. Nothing here uses httpx2, but Starlette's test client does where
it is installed."""
call: ContextVar[str | None] = ContextVar("call", default=None)


def set_up_logs(
    log_format: Literal["console", "json"],
    stream: TextIO | None = None,
    *,
    level: Literal["info", "warning", "error"] = "info",
) -> None:
    """Set up logging of the process, structlog's and the standard library's, to a stream (standard error).

    Our own lines go straight to the stream: the standard library's way there costs nearly three times as much. A line
    that cannot be written, because the disk is full or nobody reads, is lost, and whatever wrote it goes on.
    """
    stream = stream or sys.stderr
    least: int = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _name_call,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        place_of_error,
        redact,
    ]
    renderer: Any = structlog.processors.JSONRenderer(serializer=_to_json)
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=structlog.WriteLoggerFactory(_Lossy(stream)),  # type: ignore[arg-type]
        wrapper_class=structlog.make_filtering_bound_logger(least),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared[:3], structlog.stdlib.add_logger_name, *shared[3:]],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(least)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(least, logging.WARNING))


class _Lossy:
    """What a logger needs of a stream, and no error of it.

    Lines of one turn of an event loop are written together when it ends: a batch of answers has one line each, and
    every write lets another thread have the interpreter. A process that is killed loses the lines of that turn.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # at whose end of turn they are written
        atexit.register(self._write_waiting)

    def write(self, text: str) -> None:
        """Write the text, or lose it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # another thread
            self._write(text)
            return
        if loop is not self._loop:
            self._write_waiting()  # of a loop that may have ended
            self._loop = loop
        if not self._waiting:
            loop.call_soon(self._write_waiting)
        self._waiting.append(text)

    def flush(self) -> None:
        """Nothing: what is written is with the system already, or will be in a moment."""

    def _write_waiting(self) -> None:
        lines, self._waiting = self._waiting, []
        if lines:
            self._write("".join(lines))

    def _write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)
            self._stream.flush()


def _name_call(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Structlog processor: which call a line belongs to."""
    request_id = call.get()
    if request_id is not None:
        event["request_id"] = request_id
    return event


def _to_json(event: object, **_: object) -> str:
    """One line of ASCII, which no stream's encoding can spoil; most lines are already, and pydantic's way is short."""
    try:
        text = to_json(event, fallback=repr).decode()
    except (PydanticSerializationError, UnicodeError):  # half of a surrogate pair, bytes that are no text
        text = ""
    return text if text.isascii() and text else json.dumps(event, default=repr)
