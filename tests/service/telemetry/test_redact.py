from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.telemetry.redact import DROPPED, describe, place_of_error, redact, without_personal

CANARY = "canary-7f3a9c"
VALUES = st.recursive(
    st.integers() | st.just("fine"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "user_id", "body", "User_ID", "token"]), inner, max_size=3)
    ),
    max_leaves=12,
)


def names(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {name for item in value.values() for name in names(item)}
    if isinstance(value, list):
        return {name for item in value for name in names(item)}
    return set()


@given(VALUES)
def test_no_personal_key_survives_at_any_depth(value: Any) -> None:
    kept = names(without_personal(value))
    assert not {name.lower() for name in kept} & DROPPED
    assert kept <= names(value)


@pytest.mark.parametrize("name", sorted(DROPPED))
def test_each_personal_key_is_dropped(name: str) -> None:
    event = {"event": "x", name: CANARY, name.upper(): CANARY, "more": {"deep": [{name: CANARY}]}}
    assert redact(None, "info", event) == {"event": "x", "more": {"deep": [{}]}}


def test_what_is_nested_too_deep_is_left_out() -> None:
    value: Any = CANARY
    for _ in range(20):
        value = [value]
    assert CANARY not in str(without_personal(value))
    loop: list[Any] = []
    loop.append(loop)
    without_personal(loop)


def raised() -> Exception:
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise ValueError(CANARY) from error
    except ValueError as error:
        return error


def test_an_error_is_described_by_type_and_place() -> None:
    text = describe(raised())
    assert text.startswith("ValueError at test_redact.py:")
    assert "raised" in text
    assert text.endswith("after KeyError")
    assert CANARY not in text
    assert describe(ValueError(CANARY)) == "ValueError at unknown place"


def test_exc_info_of_every_form_becomes_a_place() -> None:
    error = raised()
    for given_as in (error, (type(error), error, error.__traceback__)):
        event = place_of_error(None, "error", {"event": "x", "exc_info": given_as})
        assert event["error"].startswith("ValueError at")
        assert "exc_info" not in event
    try:
        raise error
    except ValueError:
        assert place_of_error(None, "error", {"exc_info": True})["error"].startswith("ValueError at")
    for nothing in (None, False, (None, None, None)):
        assert place_of_error(None, "info", {"exc_info": nothing}) == {}
