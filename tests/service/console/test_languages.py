"""The languages of pages for people outside: complete, and chosen as browsers ask."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from audit.policy import EXACT
from audit.proof.statement import LIMITS
from service.console.languages import DEFAULT, LANGUAGES, Language, choose
from service.erasure.purge_record import (
    COPIES,
    FEATURES_AND_EXPOSURE,
    IMAGES,
    ORACLES,
    ORIGINALS,
    REFERENCES,
    SPARES,
    VERSIONS,
)
from unlearning.faces.unnamed import LOOKED_THROUGH
from unlearning.methods import METHODS


def shape(value: Any) -> Any:
    """Keys all the way down, numbers of items, and the places to be filled in of each text."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return len(value) if isinstance(value, list) else sorted(re.findall(r"{\w+}", value))


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=list(LANGUAGES))
def test_a_language_says_all_that_english_says(language: Language) -> None:
    ours, theirs = dict(language.texts), dict(DEFAULT.texts)
    sentences, methods = ours.pop("sentences"), ours.pop("methods")
    del theirs["sentences"], theirs["methods"]
    assert shape(ours) == shape(theirs)
    assert language is DEFAULT or methods.keys() == {METHODS[name].title for name in EXACT}
    assert language is DEFAULT or sentences.keys() == {*LIMITS, LOOKED_THROUGH}
    assert ours["kinds"].keys() == {
        IMAGES,
        COPIES,
        REFERENCES,
        ORACLES,
        ORIGINALS,
        FEATURES_AND_EXPOSURE,
        SPARES,
        VERSIONS,
    }


@pytest.mark.parametrize(("code", "claim"), [("de", "Modell hatte"), ("en", "had learned"), ("fr", "avait appris")])
def test_whether_the_model_in_service_knew_the_person_is_not_claimed(code: str, claim: str) -> None:
    """A spare in service knows nobody of its block, and no model knows who came after its training."""
    done, _, rest = str(LANGUAGES[code]["unlearned"]).partition("{method}")
    assert claim not in done
    assert rest


def test_there_are_three() -> None:
    assert [each["name"] for each in LANGUAGES.values()] == ["Deutsch", "English", "Français"]


@pytest.mark.parametrize(
    ("wanted", "accepted", "code"),
    [
        ("de", "fr", "de"), ("", "fr-CH, fr;q=0.9, en;q=0.8", "fr"), ("xx", "it, de;q=0.5, en;q=0.4", "de"),
        ("", "", "en"), ("../en", "*", "en"), ("", "de;q=0, fr;q=x", "en"), ("", "en;q=0.2,DE-at;q=0.3", "de"),
    ],
)  # fmt: skip
def test_the_language_is_the_wanted_one_or_what_the_browser_likes(wanted: str, accepted: str, code: str) -> None:
    assert choose(wanted, accepted).code == code


def test_times_are_said_in_utc() -> None:
    at = datetime(2026, 3, 1, 0, 30, tzinfo=timezone(timedelta(hours=1)))
    assert LANGUAGES["en"].moment(at) == "28 February 2026, 23:30 UTC"
    assert LANGUAGES["de"].moment(at) == "28. Februar 2026, 23:30 UTC"
    assert LANGUAGES["fr"].moment(datetime(2026, 8, 1, 9, 5, tzinfo=UTC)) == "1er août 2026, 09:05 UTC"


def test_a_sentence_that_nobody_translated_is_shown_as_it_was_signed() -> None:
    assert LANGUAGES["de"].sentence("As signed.") == "As signed."
