"""Bodies of the request API. Every field is always present in an answer; an unknown one in a call is refused.

Names are in the manner of OpenDSR (`regulation`, `received_at`, a status by name, a callback), without claiming
conformance. User ids appear in one place only, the body that files them; no answer repeats them.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from unlearning.faces.dataset import is_clean

MOST_IDS = 1000

State = Literal[
    "queued", "unlearning", "auditing", "deploying", "purging", "completed", "cancelled", "rejected", "needs_attention"
]
Outcome = Literal["erased", "no_data_held"]
Regulation = Literal["gdpr", "uk_gdpr", "ccpa", "lgpd", "other"]
Ground = Literal[
    "no_longer_necessary", "consent_withdrawn", "objection", "unlawful_processing", "legal_obligation",
    "collected_from_child", "unspecified",
]  # fmt: skip
LegalReason = Literal[
    "freedom_of_expression", "legal_obligation", "public_health", "archiving_or_research", "legal_claims",
    "manifestly_unfounded", "identity_not_verified", "other",
]  # fmt: skip

_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
CASE_REFERENCE = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9 ._/#:-]*[A-Za-z0-9._/#:-])?$")
EXAMPLE_CASE_REFERENCE = "DSR-2026/0141"
EXAMPLE_ID = "4be0643f-1d98-573b-97cd-ca98a65347dd"
EXAMPLE_MOMENT = "2026-01-31T12:00:00Z"


def _plain_text(text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise ValueError("Expected text without control characters or line breaks.")
    return text


def _as_in_the_data(user_id: str) -> str:
    """Another spelling of a person's id is nobody's, and would be answered that nothing is held of them."""
    if not is_clean(user_id):
        raise ValueError("Expected a user id as the data have it: printable, in Unicode form NFC, no blanks around it.")
    return user_id


def _words(text: str) -> str:
    if not text.strip():
        raise ValueError("Expected some words, got only spaces.")
    return text


def _written_out(value: Any) -> Any:
    """Moments come as text with an offset; a bare number could be seconds or milliseconds."""
    if isinstance(value, datetime | str) and not (isinstance(value, str) and value.strip("+-.0123456789") == ""):
        return value
    raise ValueError("Expected an RFC 3339 date-time with an offset, as text.")


def _in_range(value: datetime) -> datetime:
    if not _EARLIEST <= value < _LATEST:
        raise ValueError("Expected a moment between the years 2000 and 9000.")
    return value.astimezone(UTC)


def _without_repeats(ids: list[str]) -> list[str]:
    if len(set(ids)) != len(ids):
        raise ValueError("Expected each user id once, found one repeated; no request was stored.")
    return ids


def _callback(url: str) -> str:
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        raise ValueError("Expected a URL.") from None
    if parts.scheme != "https" or not parts.hostname or not port_fits or any(map(str.isspace, url)):
        raise ValueError("Expected an https URL with a host.")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("Expected a URL without user name, password or fragment.")
    return url


def _case_reference(text: str) -> str:
    if not CASE_REFERENCE.fullmatch(text):
        raise ValueError(
            "Expected a case reference of letters (A to Z), digits, blanks and . _ / # : - that begins with a letter "
            "or digit and does not end with a blank."
        )
    return text


Plain = Annotated[str, AfterValidator(_plain_text)]
UserId = Annotated[Plain, AfterValidator(_as_in_the_data), Field(min_length=1, max_length=256)]
Reason = Annotated[Plain, AfterValidator(_words), Field(min_length=1, max_length=1000)]
Moment = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_in_range), Field(strict=False)]
CallbackUrl = Annotated[
    Plain,
    AfterValidator(_callback),
    Field(max_length=2048, json_schema_extra={"format": "uri", "pattern": "^https://"}),
]


CaseReference = Annotated[
    str, AfterValidator(_case_reference), Field(max_length=64, json_schema_extra={"pattern": CASE_REFERENCE.pattern})
]


class Call(BaseModel):
    """What a caller sends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Answer(BaseModel):
    """What a caller gets: all fields, always."""

    model_config = ConfigDict(frozen=True)


class Filing(Call):
    """Erasure requests for one or many people."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "user_ids": ["s31"],
                    "case_references": [EXAMPLE_CASE_REFERENCE],
                    "regulation": "gdpr",
                    "ground": "consent_withdrawn",
                    "requested_at": EXAMPLE_MOMENT,
                    "callback_url": "https://privacy.example.org/erasure-events",
                    "legal_hold": False,
                }
            ]
        }
    )

    user_ids: Annotated[
        list[UserId],
        AfterValidator(_without_repeats),
        Field(
            min_length=1, max_length=MOST_IDS, json_schema_extra={"uniqueItems": True},
            description="The people to forget, each once and spelled as in the data (Unicode NFC, no blanks around). "
            "All are accepted, or none.",
        ),
    ]  # fmt: skip
    case_references: list[CaseReference | None] | None = Field(
        None,
        max_length=MOST_IDS,
        description="Your own number of each person's case, in the order of `user_ids` and as many; null for a person "
        "without one, null instead of the list for none at all. Kept for good and shown wherever the request is, so "
        "never a name: one that equals, contains or is part of a user id of the call is refused.",
    )
    regulation: Regulation = Field("gdpr", description="Law under which the person asks.")
    ground: Ground = Field("unspecified", description="Why, in the words of GDPR Article 17(1).")
    requested_at: Moment | None = Field(
        None, description="When the person asked; null: as `received_at`. Never in the future."
    )
    received_at: Moment | None = Field(
        None,
        description="When the controller received the request, wherever it came in; null: now. The deadline is counted "
        "from it. Never in the future, at most a year ago, not before `requested_at`.",
    )
    callback_url: CallbackUrl | None = Field(
        None,
        description="Receives every change of state, with the request id and the case reference. Must not contain a "
        "user id.",
    )
    legal_hold: bool = Field(
        False, description="The data must be kept for now: the request waits for a human, and its legal clock runs on."
    )

    @field_validator("case_references")
    @classmethod
    def _one_each(cls, case_references: list[str | None] | None, info: ValidationInfo) -> list[str | None] | None:
        ids = info.data.get("user_ids")  # absent where they do not fit themselves
        if case_references is not None and ids is not None and len(case_references) != len(ids):
            raise ValueError(
                f"Expected a case reference, or null, for each of the {len(ids)} user ids, got {len(case_references)}."
            )
        return case_references


class Receipt(Answer):
    """What was accepted for one person. `commitment` is HMAC-SHA-256(`commitment_salt`, user id)."""

    id: str = Field(examples=[f"{EXAMPLE_ID}-0001"])
    case_reference: str | None = Field(
        description="Your own number of this person's case, as in `case_references`.", examples=[EXAMPLE_CASE_REFERENCE]
    )
    state: State
    linked_request_id: str | None = Field(description="The open request of the same person that this one follows.")
    commitment: str = Field(description="The person's name in the certificate.")
    commitment_salt: str | None = Field(
        description="Hex. With it whoever knows the user id can check the commitment. Keep it: it is destroyed with "
        "the user id when the request ends, and null from then on, also in the answer to a repeated call."
    )
    received_at: datetime = Field(
        description="When the controller received it: as filed, else the time of filing.", examples=[EXAMPLE_MOMENT]
    )
    filed_at: datetime = Field(description="When it was filed here.", examples=[EXAMPLE_MOMENT])
    hold_until: datetime = Field(description="Until then the request can be cancelled.", examples=[EXAMPLE_MOMENT])
    due_at: datetime = Field(description="One calendar month after `received_at`.", examples=["2026-02-28T12:00:00Z"])
    overdue: bool = Field(description="Whether `due_at` had passed when it was filed.")


class Filed(Answer):
    """Receipts in the order of `user_ids`, the first for the first: so you know whose each number is."""

    batch_id: str = Field(examples=[EXAMPLE_ID])
    requests: list[Receipt]


class Event(Answer):
    """One move of a request; `from_state` is null for the first, and equal to `to_state` for a note."""

    at: datetime
    from_state: State | None
    to_state: State
    note: str


class Callback(Answer):
    """The delivery of one event to `callback_url`."""

    state: str
    status: str = Field(description="pending, delivered, disabled (the receiver answered 410) or given_up.")
    n_attempts: int
    last_result: str
    next_attempt_at: datetime | None


class RequestSummary(Answer):
    """The state of one person's erasure request."""

    id: str = Field(examples=[f"{EXAMPLE_ID}-0001"])
    batch_id: str = Field(examples=[EXAMPLE_ID])
    case_reference: str | None = Field(
        description="The client's own number of the case.", examples=[EXAMPLE_CASE_REFERENCE]
    )
    client_id: str
    state: State
    outcome: Outcome | None
    regulation: Regulation
    ground: Ground
    legal_hold: bool
    linked_request_id: str | None = Field(description="Null also when the other request is not yours to see.")
    certificate_id: str | None
    callback_url: str | None
    attention_reason: str | None
    reject_reason: str | None
    extension_reason: str | None
    commitment: str
    commitment_salt: str | None = Field(
        description="Shown to the client that filed the request until the request ends, else null."
    )
    cancellable: bool = Field(description="Whether DELETE would cancel it at this moment.")
    overdue: bool = Field(description="Whether it is open and `due_at` has passed.")
    requested_at: datetime = Field(examples=[EXAMPLE_MOMENT])
    received_at: datetime = Field(
        description="When the controller received it; `due_at` is counted from it.", examples=[EXAMPLE_MOMENT]
    )
    filed_at: datetime = Field(description="When it was filed here.", examples=[EXAMPLE_MOMENT])
    hold_until: datetime = Field(examples=[EXAMPLE_MOMENT])
    due_at: datetime = Field(examples=["2026-02-28T12:00:00Z"])
    updated_at: datetime = Field(examples=[EXAMPLE_MOMENT])
    completed_at: datetime | None


class RequestDetail(RequestSummary):
    """A request with its history, oldest first."""

    progress: str = Field(description="What its run is doing now, for people to read; empty when no run is open.")
    callbacks: list[Callback]
    events: list[Event]


class RequestPage(Answer):
    """Some requests, newest first; give `next_cursor` as `cursor` for those after them."""

    requests: list[RequestSummary]
    next_cursor: str | None


class Extension(Call):
    """Two further months (GDPR 12(3)), once, with the reason that the person is told."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "Many requests arrived in the same week."}]})

    reason: Reason


class Rejection(Call):
    """A human's refusal on a legal ground."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"legal_reason": "legal_claims", "explanation": "The images are evidence in an open case."}]
        }
    )

    legal_reason: LegalReason = Field(description="GDPR Article 17(3), 12(5) or 12(6).")
    explanation: Reason


class Decision(Call):
    """Why a human decides so: lets a held request go on, or goes back to an older model version."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"reason": "Confirmed by telephone with the controller."}]}
    )

    reason: Reason


class BatchDecided(Answer):
    """How many requests of a batch a decision moved."""

    batch_id: str
    n_moved: int


class PlaceOfError(Answer):
    """A place of the input that does not fit."""

    pointer: str = Field(description="JSON pointer into the body, or query/<name>.", examples=["/user_ids/3"])
    detail: str = Field(examples=["String should have at least 1 character."])


class Problem(BaseModel):
    """Every error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:expunge:problem:invalid-input"])
    title: str = Field(examples=["Invalid input"])
    status: int = Field(examples=[422])
    detail: str = Field(
        examples=["Expected input as openapi.json describes it; 1 place(s) differ. Nothing was stored."]
    )
    request_id: str = Field(examples=[EXAMPLE_ID])
    errors: list[PlaceOfError]
