from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.requests.schemas import MOST_IDS, Answer, Decision, Filing, RequestDetail


def refused(**values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Filing.model_validate({"user_ids": ["s31"]} | values)
    return str(caught.value.errors(include_input=False))


@pytest.mark.parametrize(
    "ids",
    [
        [], None, "s31", ["s31", ""], ["s31", "s31"], ["a\nb"], ["\x00"], ["\x7f"], ["\ud800"], ["\u2028"], ["x" * 257],
        [" s31"], ["s31 "], [" "], ["\u00a0s31"], ["Zoe\u0308"], ["s\u200b31"],
        [31], [None], [["s31"]], {"s31": 1}, [f"s{n}" for n in range(MOST_IDS + 1)],
    ],
)  # fmt: skip
def test_unfit_ids_are_refused(ids: object) -> None:
    refused(user_ids=ids)


def test_fit_ids_are_taken_as_they_are() -> None:
    ids = ["s31", "s 31", "S31", "Zoë 🙂", "x" * 256, "a/b?c=d&e", "'; drop table erasure_requests; --"]
    assert Filing.model_validate({"user_ids": ids}).user_ids == ids
    assert len(Filing.model_validate({"user_ids": [f"s{n}" for n in range(MOST_IDS)]}).user_ids) == MOST_IDS


@given(st.text(min_size=1, max_size=256))
def test_no_id_is_repeated_in_a_refusal(user_id: str) -> None:
    marked = f"canary{user_id}"[:256]
    for values in ({"user_ids": [marked, marked]}, {"user_ids": [marked + "\n"]}, {"user_ids": [marked, ""]}):
        assert "canary" not in refused(**values)


@pytest.mark.parametrize(
    "moment",
    [
        5, 1.5, True, "5", "1700000000", "2026-01-31", "2026-01-31T12:00:00", "yesterday", "", "1970-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-02-30T00:00:00Z",
    ],
)  # fmt: skip
def test_moments_are_text_with_an_offset_in_this_age(moment: object) -> None:
    refused(requested_at=moment)


@pytest.mark.parametrize(
    "case_references",
    [
        [], ["a", "b"], "DSR", [""], [" a"], ["a "], ["=1+1"], ["+1"], ["-1"], ["@x"], ["a\nb"], ["a\tb"], ["a@b"],
        ["é"], ["x" * 65], [5], [["a"]], ["a\n"], ["a,b"], ['a"b'], ["a;b"],
    ],
)  # fmt: skip
def test_unfit_case_references_are_refused(case_references: object) -> None:
    refused(case_references=case_references)


def test_fit_case_references_are_taken_as_they_are() -> None:
    case_references = ["DSR-2026/0141", None, "a", "Az. 14 O 123#4:x_y-", "x" * 64]
    filing = Filing.model_validate({"user_ids": [f"s{n}" for n in range(5)], "case_references": case_references})
    assert filing.case_references == case_references
    assert Filing.model_validate({"user_ids": ["s"], "case_references": None}).case_references is None


def test_moments_come_out_in_utc() -> None:
    filing = Filing.model_validate({"user_ids": ["s"], "requested_at": "2026-01-31T14:30:00+02:30"})
    assert filing.requested_at == datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "url",
    [
        "", "http://a.example", "https://", "https:///path", "ftp://a.example", "a.example", "https://u:p@a.example/",
        "https://u@a.example/", "https://a.example/#x", "https://a.example:99999/", "https://a.example:x/", "https://[::1",
        "https://a.example/\n", "https://a ample/", "https://a.example/\u00a0x", "https://a.example/" + "x" * 2048,
    ],
)  # fmt: skip
def test_callbacks_are_plain_https(url: str) -> None:
    refused(callback_url=url)


def test_a_fit_callback_is_taken() -> None:
    url = "https://privacy.example.org:8443/events?source=expunge"
    assert Filing.model_validate({"user_ids": ["s"], "callback_url": url}).callback_url == url


@pytest.mark.parametrize(
    "values",
    [{"regulation": "GDPR"}, {"ground": "because"}, {"legal_hold": "yes"}, {"legal_hold": 1}, {"legal_hold": None},
     {"extra": 1}],
)  # fmt: skip
def test_other_words_are_refused(values: dict[str, object]) -> None:
    refused(**values)


@pytest.mark.parametrize("reason", ["", "   ", "a\nb", "x" * 1001, 5, None])
def test_reasons_are_a_line_of_words(reason: object) -> None:
    with pytest.raises(ValidationError):
        Decision.model_validate({"reason": reason})


def test_every_field_of_every_answer_is_always_present() -> None:
    def optional(model: type[Answer]) -> list[str]:
        return [name for name, field in model.model_fields.items() if not field.is_required()]

    def answers(model: type[Answer]) -> list[type[Answer]]:
        return [each for sub in model.__subclasses__() for each in [sub, *answers(sub)]]

    assert RequestDetail in answers(Answer)
    assert {each.__name__: optional(each) for each in answers(Answer) if optional(each)} == {}
