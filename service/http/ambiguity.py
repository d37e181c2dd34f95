"""Refuses calls that can be read in two ways: of two readers one would take what the other leaves out.

A name twice in a JSON object, one header in two lines, a parameter given twice: RFC 8259 and RFC 9110 leave it to each
program which of them counts. Whoever files `{"user_ids": ["a"], "user_ids": ["b"]}` may mean either person or both, and
an erasure has to be of the one who was meant.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from email.message import Message
from typing import Any, Final

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, ImmutableMultiDict

from audit.proof.log import LogError, parse_json

SINGLE: Final = ("content-encoding", "content-length", "content-type", "idempotency-key")


def single_header(headers: Headers, name: str) -> str | None:
    """The one value of a header, or none.

    Raises:
        RequestValidationError: the header came in several lines.
    """
    values = headers.getlist(name)
    if len(values) > 1:
        raise _refusal([(("header", name), _once(len(values)))])
    return values[0] if values else None


def refuse_repeated(given: ImmutableMultiDict[str, Any], known: Mapping[str, bool]) -> None:
    """Refuse a call with a parameter that nobody knows, or with one twice.

    Args:
        given: parameters of the query.
        known: those that the route has, and whether each may be repeated.

    Raises:
        RequestValidationError: with the place of each; a name that the caller made up is not repeated.
    """
    counts = Counter(name for name, _ in given.multi_items())
    twice = [(name, n) for name, n in counts.items() if n > 1 and known.get(name) is False]
    places: list[tuple[tuple[str, ...], str]] = [(("query", name), _once(n)) for name, n in twice]
    if counts.keys() - known.keys():
        places.append((("query",), "Expected only the parameters that openapi.json names, found another one."))
    if places:
        raise _refusal(places)


def read_json(content: bytes, headers: Headers) -> Any:
    """A body as JSON, if it is declared as JSON and has one meaning.

    Raises:
        RequestValidationError: it does not, or is not well-formed.
        HTTPException: nested too deep, or with a number of too many digits.
    """
    _check_encoding(headers)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise _refusal([(("body",), "Expected JSON in UTF-8.")]) from None
    if text.startswith("\ufeff"):
        raise _refusal([(("body",), "Expected JSON in UTF-8 without a byte order mark.")])
    try:
        return parse_json(text)
    except LogError as error:
        raise _refusal([(("body",), str(error))]) from None
    except json.JSONDecodeError as error:
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body", error.pos), "msg": error.msg}]) from None
    except (ValueError, RecursionError):
        raise HTTPException(400) from None


def is_json(content_type: str) -> bool:
    """Whether a body is declared as JSON."""
    kind = _parsed(content_type)
    subtype = kind.get_content_subtype()
    return kind.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def _check_encoding(headers: Headers) -> None:
    """Refuse a charset other than UTF-8, and a body that is declared as compressed: we would read it as it came."""
    charsets = [value for name, value in _parsed(headers.get("content-type", "")).get_params([]) if name == "charset"]
    if len(charsets) > 1 or not all(map(_is_utf_8, charsets)):
        raise _refusal([(("header", "content-type"), "Expected the charset utf-8, or none.")])
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise _refusal([(("header", "content-encoding"), "Expected a body that is not compressed.")])


def _is_utf_8(charset: str) -> bool:
    try:
        return codecs.lookup(charset).name == "utf-8"
    except (LookupError, ValueError):
        return False


def _parsed(content_type: str) -> Message:
    message = Message()
    message["content-type"] = content_type
    return message


def _once(n: int) -> str:
    return f"Expected it once, found it {n} times."


def _refusal(places: Iterable[tuple[tuple[str, ...], str]]) -> RequestValidationError:
    """An error with places and sentences, in the shape of those that pydantic finds."""
    return RequestValidationError(
        [{"type": "value_error", "loc": place, "ctx": {"error": sentence}} for place, sentence in places]
    )
