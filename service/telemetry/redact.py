"""Removes from log lines what must never be in one: who a person is, and secrets.

Log calls name things by key, so redaction goes by key too; free text is kept safe by never putting values of people
into it. Exceptions are logged by type and place only: their messages may quote what a caller sent or what a statement
was given.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

PERSONAL: Final = frozenset({
    "user_id", "user_ids", "subject", "subjects", "subject_id", "subject_ids", "person", "label", "file_name",
    "body", "form", "json", "params", "parameters", "query", "query_string", "url", "raw_path", "callback_url",
    "input", "exc_value", "locals", "stack",
})  # fmt: skip
SECRET: Final = frozenset(
    {"authorization", "cookie", "api_key", "key", "token", "secret", "password", "commitment_salt"}
)
DROPPED: Final = PERSONAL | SECRET

_DEEPEST = 6
_PLAIN = frozenset({str, int, float, bool, type(None)})  # most values of most lines: the question below is a slow one


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Structlog processor that drops personal and secret keys at any depth."""
    for name in _dropped_of(tuple(event)):
        del event[name]
    for name, value in event.items():
        if type(value) not in _PLAIN and isinstance(value, Mapping | list | tuple | set):
            event[name] = without_personal(value)
    return event


def without_personal(value: Any, depth: int = 0) -> Any:
    """Copy of a value without personal and secret keys; what is nested too deep to look through is left out whole."""
    if not isinstance(value, Mapping | list | tuple | set):
        return value
    if depth == _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {name: without_personal(item, depth + 1) for name, item in value.items() if not _is_dropped(name)}
    return [without_personal(item, depth + 1) for item in value]


def place_of_error(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Structlog processor that replaces `exc_info` by the error's type and the places it passed."""
    error = _error(event.pop("exc_info", None))
    if error is not None:
        event["error"] = describe(error)
    return event


def describe(error: BaseException) -> str:
    """An error without its message: `ValueError at states.py:40 move < decisions.py:31 cancel`, and its cause."""
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in reversed(traceback.extract_tb(error.__traceback__, limit=-8))
    ]
    text = f"{type(error).__name__} at {' < '.join(frames) or 'unknown place'}"
    cause = error.__cause__ or error.__context__
    return f"{text}; after {type(cause).__name__}" if cause is not None else text


@lru_cache(maxsize=256)  # most lines have the names of one before
def _dropped_of(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if _is_dropped(name))


def _is_dropped(name: object) -> bool:
    return isinstance(name, str) and name.lower() in DROPPED


def _error(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple) and len(exc_info) == 3 and isinstance(exc_info[2], TracebackType | None):
        return exc_info[1] if isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None
