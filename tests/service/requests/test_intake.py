from __future__ import annotations

import calendar
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlmodel import col, func, select

from service.context import Context
from service.errors import InvalidInputError
from service.keys.api_keys import ADMIN, WRITE, Client, create_key
from service.keys.keyring import commitment
from service.requests import states
from service.requests.decisions import cancel, extend
from service.requests.intake import (
    LEGAL_HOLD,
    MASS_DELETION,
    QuotaError,
    due_at,
    file_requests,
    forget_old_answers,
    telling_case_reference,
)
from service.requests.schemas import Extension, Filed, Filing
from service.requests.views import request_detail
from service.store.engine import reading, session
from service.store.tables import ErasureRequest, IdempotencyRecord, RequestEvent, Tombstone
from tests.waiting import at_once

pytestmark = pytest.mark.both_databases

Person = Callable[..., Client]


def file(context: Context, client: Client, *ids: str, **options: Any) -> Filed:
    limits = {"n_subjects": lambda: 40, "most_open": 2000} | {
        name: options.pop(name) for name in ("n_subjects", "most_open", "idempotency_key") if name in options
    }
    return file_requests(context, client, Filing.model_validate({"user_ids": list(ids), **options}), **limits)


def rows(context: Context) -> list[ErasureRequest]:
    with reading(context.engine) as s:
        return list(s.exec(select(ErasureRequest).order_by(col(ErasureRequest.filed_at), col(ErasureRequest.id))))


def count(context: Context, table: Any) -> int:
    with reading(context.engine) as s:
        return s.exec(select(func.count()).select_from(table)).one()


@given(
    st.datetimes(timezones=st.just(UTC)).filter(lambda at: at.year < 9999),
    st.sampled_from([1, 3]),
)
def test_a_deadline_is_calendar_months_away(received: datetime, months: int) -> None:
    year, month = received.year + (received.month - 1 + months) // 12, (received.month - 1 + months) % 12 + 1
    day = min(received.day, calendar.monthrange(year, month)[1])
    assert due_at(received, months) == received.replace(year=year, month=month, day=day)
    assert timedelta(days=28 * months) <= due_at(received, months) - received <= timedelta(days=31 * months)


@pytest.mark.parametrize(
    ("received", "due"),
    [((2026, 1, 31), (2026, 2, 28)), ((2028, 1, 31), (2028, 2, 29)), ((2026, 12, 31), (2027, 1, 31)),
     ((2026, 2, 28), (2026, 3, 28))],
)  # fmt: skip
def test_deadlines_of_the_ends_of_months(received: tuple[int, int, int], due: tuple[int, int, int]) -> None:
    assert due_at(datetime(*received, 9, 30, tzinfo=UTC)) == datetime(*due, 9, 30, tzinfo=UTC)


def test_a_filed_request_is_stored_with_its_clock_tombstone_and_event(context: Context, person: Person) -> None:
    filed = file(context, person(), "s31", ground="objection", callback_url="https://a.example/cb")
    receipt, (request,) = filed.requests[0], rows(context)
    assert (request.id, request.client_id, request.state, request.user_id) == (receipt.id, "client", "queued", "s31")
    assert request.id == f"{filed.batch_id}-0001"
    assert request.subject_hash == context.keyring.subject_hash("s31")
    assert request.commitment == receipt.commitment == commitment(bytes.fromhex(receipt.commitment_salt), "s31")
    assert request.received_at == request.requested_at == request.filed_at == context.now()
    assert request.due_at == datetime(2026, 2, 28, 12, 0, tzinfo=UTC)
    assert request.hold_until == context.now() + timedelta(hours=1)
    assert (request.ground, request.regulation, request.callback_url) == ("objection", "gdpr", "https://a.example/cb")
    with reading(context.engine) as s:
        assert s.get(Tombstone, request.subject_hash) is not None
        assert s.exec(select(RequestEvent.to_state)).all() == ["queued"]


def test_the_clock_counts_from_the_day_the_controller_received_the_request(context: Context, person: Person) -> None:
    received = datetime(2026, 1, 7, 9, 30, tzinfo=UTC)
    (receipt,) = file(context, person(), "s31", received_at=received.isoformat()).requests
    (request,) = rows(context)
    assert receipt.due_at == request.due_at == datetime(2026, 2, 7, 9, 30, tzinfo=UTC)
    assert request.received_at == request.requested_at == received == receipt.received_at
    assert request.filed_at == receipt.filed_at == context.now()
    assert request.hold_until == context.now() + timedelta(hours=1)
    assert not receipt.overdue
    extended = extend(context, person("boss", ADMIN), request.id, Extension(reason="Many requests."))
    assert extended.due_at == datetime(2026, 4, 7, 9, 30, tzinfo=UTC)


def test_a_request_received_more_than_a_month_ago_is_overdue_at_once(context: Context, person: Person) -> None:
    receipts = file(context, person(), "s31", received_at="2025-12-30T12:00:00Z").requests
    assert [receipt.overdue for receipt in receipts] == [True]
    assert request_detail(context, person(), receipts[0].id).overdue


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"received_at": "2026-01-31T12:06:00Z"}, "not to lie in the future"),
        ({"received_at": "2025-01-31T11:59:59Z"}, "at most a year ago"),
        ({"received_at": "2026-01-20T00:00:00Z", "requested_at": "2026-01-21T00:00:00Z"}, "not to be later than"),
    ],
)
def test_receipts_that_cannot_be_are_refused(
    context: Context, person: Person, values: dict[str, str], sentence: str
) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        file(context, person(), "s31", **values)
    assert rows(context) == []
    file(context, person(), "s31", received_at="2025-01-31T12:00:00Z", requested_at="2020-02-29T00:00:00Z")


def test_a_mass_deletion_is_noticed_whatever_the_dates_of_receipt(context: Context, person: Person) -> None:
    settings = context.settings.model_copy(update={"mass_deletion_hours": 24.0})
    context = replace(context, settings=settings)
    for number in range(8):
        file(context, person(), f"p{number}", received_at="2025-12-01T00:00:00Z")
    (receipt,) = file(context, person(), "p8", received_at="2025-12-01T00:00:00Z").requests
    assert receipt.state == "needs_attention"


@pytest.mark.parametrize(
    ("user_id", "case_reference"),
    [
        ("customer-7", "customer-7"), ("customer-7", "DSR CUSTOMER_7/2026"), ("customer-7", "customer"),
        ("Zoë Smith", "zoe.smith"), ("ＡＢＣ", "abc-1"), ("7", "2026/0007"), ("s 31", "S31"),
    ],
)  # fmt: skip
def test_a_case_reference_that_tells_a_user_id_of_the_call_is_refused(
    context: Context, person: Person, user_id: str, case_reference: str
) -> None:
    with pytest.raises(InvalidInputError, match="number 2 does or is") as caught:
        file(context, person(), "--", "other", user_id, case_references=[None, case_reference, "B/x"])
    assert user_id not in caught.value.detail
    assert case_reference not in caught.value.detail
    assert rows(context) == []


@given(
    st.lists(st.text("aB1-é ", min_size=1, max_size=3), max_size=4),
    st.lists(st.none() | st.text("aAbBeE1-. ", max_size=4), max_size=4),
)
def test_telling_case_references_are_those_that_a_naive_search_finds(
    ids: list[str], case_references: list[str | None]
) -> None:
    def bare(text: str) -> str:
        return "".join({"é": "e"}.get(each, each) for each in text.lower() if each.isalnum())

    told = [
        place
        for place, case_reference in enumerate(case_references)
        for user_id in ids
        if bare(case_reference or "") and bare(user_id)
        if bare(case_reference or "") in bare(user_id) or bare(user_id) in bare(case_reference or "")
    ]
    assert telling_case_reference(case_references, ids) == (min(told) if told else None)


def test_a_case_reference_stays_after_the_end_and_each_follower_has_its_own(context: Context, person: Person) -> None:
    first = file(context, person(), "s31", case_references=["DSR-A"]).requests[0]
    second = file(context, person(), "s31", case_references=["DSR-B"]).requests[0]
    assert (first.case_reference, second.case_reference) == ("DSR-A", "DSR-B")
    cancel(context, person(), first.id)
    assert sorted(str(row.case_reference) for row in rows(context)) == ["DSR-A", "DSR-B"]


def test_an_answer_kept_by_an_earlier_release_is_still_given(context: Context, person: Person) -> None:
    """Its body had no date of receipt, and its receipts no date of filing."""
    first = file(context, person(), "s31", idempotency_key="k")
    with session(context.engine) as s:
        (record,) = s.exec(select(IdempotencyRecord))
        body = {
            "user_ids": ["s31"], "regulation": "gdpr", "ground": "unspecified", "requested_at": None,
            "callback_url": None, "legal_hold": False,
        }  # fmt: skip
        assert record.body_sha256 == context.keyring.subject_hash("filing\n" + json.dumps(body, sort_keys=True))
        (receipt,) = record.response["requests"]
        record.response = {**record.response, "requests": [
            {name: value for name, value in receipt.items() if name not in ("filed_at", "overdue", "case_reference")}
        ]}  # fmt: skip
        s.add(record)
        s.commit()
    assert file(context, person(), "s31", idempotency_key="k") == first


def test_receipts_come_in_the_order_of_the_ids_and_never_name_them(context: Context, person: Person) -> None:
    ids = [f"canary-{n}" for n in (3, 1, 2)]
    filed = file(context, person(), *ids)
    for receipt, user_id in zip(filed.requests, ids, strict=True):
        assert receipt.commitment == commitment(bytes.fromhex(receipt.commitment_salt), user_id)
    assert "canary" not in filed.model_dump_json()


def test_intake_asks_nobody_whether_a_person_is_known(context: Context, person: Person) -> None:
    def never() -> int:
        raise AssertionError("Somebody looked.")

    first = file(context, person(), "s31", n_subjects=never)
    second = file(context, person(), "nobody", n_subjects=never)
    assert first.requests[0].model_dump().keys() == second.requests[0].model_dump().keys()


def test_requests_of_the_future_and_callbacks_with_ids_are_refused(context: Context, person: Person) -> None:
    future = (context.now() + timedelta(minutes=6)).isoformat()
    with pytest.raises(InvalidInputError, match="future"):
        file(context, person(), "s31", requested_at=future)
    with pytest.raises(ValidationError, match="https URL"):
        file(context, person(), "s1", "s 31", callback_url="https://a.example/s 31/cb")
    for url in ("https://a.example/u/s%2031", "https://a.example/?u=s+31"):
        with pytest.raises(InvalidInputError, match="callback_url") as caught:
            file(context, person(), "s1", "s 31", callback_url=url)
        assert "31" not in caught.value.detail
    for url in (
        "https://a.example/notify-Customer-7.json",
        "https://customer-7.a.example/",
        "https://a.example/?to=customer%2D7x",
    ):
        with pytest.raises(InvalidInputError, match="callback_url"):
            file(context, person(), "customer-7", callback_url=url)
    file(context, person(), "s31", callback_url="https://s31.example/s310?x=s3", requested_at=context.now().isoformat())
    assert len(rows(context)) == 1


def test_all_or_nothing(context: Context, person: Person) -> None:
    with pytest.raises(QuotaError):
        file(context, person(), "a", "b", "c", most_open=2, idempotency_key="k")
    assert [count(context, table) for table in (ErasureRequest, Tombstone, RequestEvent, IdempotencyRecord)] == [0] * 4


def test_the_quota_counts_open_requests_of_the_client(context: Context, person: Person) -> None:
    first = file(context, person("a"), "p1", "p2", most_open=2).requests[0]
    file(context, person("b"), "p3", most_open=2)
    with pytest.raises(QuotaError, match="2 are open and 1 came") as caught:
        file(context, person("a"), "p4", most_open=2)
    assert (caught.value.status, caught.value.retry_after_seconds) == (429, 60)
    cancel(context, person("a"), first.id)
    file(context, person("a"), "p4", most_open=2)


def test_same_key_and_body_give_the_same_answer_even_when_all_has_moved(
    context: Context, clock: Any, person: Person
) -> None:
    first = file(context, person(), "s31", "s4", idempotency_key="k-1")
    cancel(context, person(), first.requests[0].id)
    clock.advance(days=3)
    again = file(context, person(), "s31", "s4", idempotency_key="k-1")
    assert again.requests[0] == first.requests[0].model_copy(update={"commitment_salt": None})  # ended, so it is gone
    assert (again.batch_id, again.requests[1]) == (first.batch_id, first.requests[1])
    assert len(rows(context)) == 2


def test_a_repeated_call_is_answered_though_the_clock_was_set_back(
    context: Context, clock: Any, person: Person
) -> None:
    asked_at = context.now().isoformat()
    first = file(context, person(), "s31", requested_at=asked_at, idempotency_key="k")
    clock.advance(hours=-1)
    assert file(context, person(), "s31", requested_at=asked_at, idempotency_key="k") == first
    with pytest.raises(InvalidInputError, match="future"):
        file(context, person(), "s31", requested_at=asked_at, idempotency_key="other")


def test_a_salt_ends_with_its_request_in_every_table(context: Context, person: Person) -> None:
    receipt = file(context, person(), "s31", idempotency_key="k").requests[0]
    cancel(context, person(), receipt.id)
    assert receipt.commitment_salt is not None
    with context.engine.connect() as connection:
        for table in ("erasure_requests", "idempotency_records", "request_events", "callback_deliveries"):
            assert receipt.commitment_salt not in str(connection.exec_driver_sql(f"SELECT * FROM {table}").all())  # noqa: S608


def test_an_old_answer_is_forgotten_at_once_and_then_removed(context: Context, clock: Any, person: Person) -> None:
    first = file(context, person(), "s31", idempotency_key="k")
    file(context, person(), "s4", idempotency_key="other")
    clock.advance(days=context.settings.idempotency_days)
    again = file(context, person(), "s31", idempotency_key="k")
    assert again.batch_id != first.batch_id
    assert again.requests[0].linked_request_id == first.requests[0].id
    assert count(context, IdempotencyRecord) == 2
    assert forget_old_answers(context) == 1
    assert file(context, person(), "s31", idempotency_key="k") == again


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]", "[fe80::1]", "localhost",
     "LocalHost.", "a.localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "1.2.3.4.5", "256.1.1.1"],
)  # fmt: skip
def test_a_callback_that_evidently_leads_inside_is_refused(context: Context, person: Person, host: str) -> None:
    with pytest.raises(InvalidInputError, match="EXPUNGE_CALLBACK_ALLOW"):
        file(context, person(), "p", callback_url=f"https://{host}:8443/hook")
    assert not rows(context)


def test_what_the_operator_allows_and_names_are_not_refused(context: Context, person: Person) -> None:
    allowing = replace(
        context, settings=context.settings.model_copy(update={"callback_allow": "localhost,10.1.0.0/16"})
    )
    for number, host in enumerate(["localhost", "10.1.2.3"]):
        file(allowing, person(), f"p{number}", callback_url=f"https://{host}/hook")
    for number, host in enumerate(
        ["93.184.216.34", "[2606:2800:220:1::1]", "hooks.example.org", "1.example", "münze.de"]
    ):
        file(context, person(), f"q{number}", callback_url=f"https://{host}/hook")


def test_a_key_may_have_a_quota_of_its_own(context: Context, person: Person) -> None:
    with session(context.engine) as s:
        create_key(s, name="a", scopes=[WRITE], now=context.now(), key_id="a", most_open=1)
        s.commit()
    file(context, person("a"), "p1")
    with pytest.raises(QuotaError, match="at most 1 open requests"):
        file(context, person("a"), "p2")


def test_calls_of_one_client_at_once_do_not_pass_its_quota(context: Context, person: Person) -> None:
    with session(context.engine) as s:
        create_key(s, name="a", scopes=[WRITE], now=context.now(), key_id="a")
        s.commit()
    refused = []

    def call(number: int) -> None:
        try:
            file(context, person("a"), f"p{number}", most_open=2)
        except QuotaError as error:
            refused.append(error)

    at_once(*(partial(call, number) for number in range(5)))
    assert (len(rows(context)), len(refused)) == (2, 3)


def test_same_key_with_another_body_is_refused(context: Context, person: Person) -> None:
    file(context, person(), "s31", idempotency_key="k")
    for other in ({"ids": ["s4"]}, {"ids": ["s31"], "legal_hold": True}):
        with pytest.raises(InvalidInputError, match="new key for a new call") as caught:
            file(context, person(), *other.pop("ids"), idempotency_key="k", **other)
        assert "s31" not in caught.value.detail
    assert len(rows(context)) == 1


def test_keys_of_two_clients_are_two_keys(context: Context, person: Person) -> None:
    first = file(context, person("a"), "s31", idempotency_key="k")
    second = file(context, person("b"), "s4", idempotency_key="k")
    assert first.batch_id != second.batch_id


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256, "\x7f"])
def test_unfit_idempotency_keys_are_refused(context: Context, person: Person, key: str) -> None:
    with pytest.raises(InvalidInputError, match="Idempotency-Key"):
        file(context, person(), "s31", idempotency_key=key)


def test_what_is_kept_of_a_call_does_not_show_its_ids(context: Context, person: Person) -> None:
    file(context, person(), "canary-31", idempotency_key="erase-canary-31")
    with reading(context.engine) as s:
        record = s.exec(select(IdempotencyRecord)).one()
    assert "canary" not in str(record.model_dump())
    assert record.body_sha256 != context.keyring.subject_hash("canary-31")


def test_one_answer_for_one_key_under_concurrency(context: Context, person: Person) -> None:
    answers = []

    def call() -> None:
        answers.append(file(context, person(), "s31", "s4", idempotency_key="k"))

    at_once(*[call] * 6)
    assert len(answers) == 6
    assert all(answer == answers[0] for answer in answers)
    assert len(rows(context)) == 2


def test_two_calls_for_one_person_at_once_make_one_leader(context: Context, person: Person) -> None:
    def call(name: str) -> None:
        file(context, person(name), "s31")

    at_once(*(partial(call, name) for name in "abcd"))
    assert sorted(request.linked_request_id is None for request in rows(context)) == [False, False, False, True]


def test_a_second_request_links_to_the_open_one(context: Context, clock: Any, person: Person) -> None:
    first = file(context, person("a"), "s31").requests[0]
    clock.advance(minutes=1)
    same = file(context, person("a"), "s31").requests[0]
    other = file(context, person("b"), "s31").requests[0]
    assert same.linked_request_id == first.id
    assert other.linked_request_id is None  # that somebody else asked is not this client's business
    assert [request.linked_request_id for request in rows(context)] == [None, first.id, first.id]
    assert {same.commitment, other.commitment} == {first.commitment}


def test_a_request_after_the_end_starts_anew(context: Context, clock: Any, person: Person) -> None:
    file(context, person(), "s31")
    (first,) = rows(context)
    with session(context.engine) as s:
        for step in ("unlearning", "purging"):
            states.move(s, first, step, now=clock())
        states.move(s, first, "completed", now=clock(), outcome="erased")
        s.commit()
    clock.advance(days=1)
    again = file(context, person(), "s31").requests[0]
    assert (again.linked_request_id, again.state) == (None, "queued")


def test_a_call_that_names_a_large_share_waits_for_a_human(context: Context, person: Person) -> None:
    file(context, person(), *(f"few{n}" for n in range(8)))  # 8 of 40: not above a fifth
    many = file(context, person(), *(f"many{n}" for n in range(9)))
    assert {receipt.state for receipt in many.requests} == {"needs_attention"}
    held = [request for request in rows(context) if request.state == "needs_attention"]
    assert {request.attention_reason for request in held} == {MASS_DELETION}
    assert len(held) == 9
    assert all(request.due_at == due_at(context.now()) for request in held)


def test_one_person_is_never_a_mass(context: Context, person: Person) -> None:
    assert file(context, person(), "s31", n_subjects=lambda: 1).requests[0].state == "queued"
    assert file(context, person(), "a", "b", n_subjects=lambda: 0).requests[0].state == "needs_attention"


def test_calls_of_a_client_may_count_together(context: Context, settings: Any, clock: Any, person: Person) -> None:
    """One person a call is no way around the hold, nor to what it holds."""
    context = replace(context, settings=settings.model_copy(update={"mass_deletion_hours": 24.0}))
    states = [file(context, person("a"), f"p{n}").requests[0].state for n in range(10)]
    assert states == ["queued"] * 8 + ["needs_attention"] * 2  # of 40 people a fifth
    assert file(context, person("a"), "p9").requests[0].state == "needs_attention"
    assert file(context, person("b"), "q").requests[0].state == "queued"
    clock.advance(hours=24)
    assert file(context, person("a"), "later").requests[0].state == "queued"


def test_an_ordinary_call_releases_what_a_held_mass_asks_for_that_person(context: Context, person: Person) -> None:
    file(context, person("a"), *(f"p{n}" for n in range(9)))
    single = file(context, person("b"), "p3").requests[0]
    assert single.state == "queued"
    by_user = {request.user_id: request for request in rows(context) if request.client_id == "a"}
    assert {user for user, request in by_user.items() if request.state == "queued"} == {"p3"}


def test_a_legal_hold_waits_and_stops_what_no_run_has_claimed(context: Context, clock: Any, person: Person) -> None:
    file(context, person("a"), "s31")
    clock.advance(minutes=1)
    hold = file(context, person("b"), "s31", legal_hold=True).requests[0]
    clock.advance(minutes=1)
    later = file(context, person("c"), "s31").requests[0]
    assert (hold.state, later.state) == ("needs_attention", "needs_attention")
    assert {(request.state, request.attention_reason) for request in rows(context)} == {("needs_attention", LEGAL_HOLD)}


def test_a_legal_hold_on_a_held_mass_keeps_its_own_reason(context: Context, person: Person) -> None:
    file(context, person("a"), *(f"p{n}" for n in range(9)))
    file(context, person("b"), "p3", legal_hold=True)
    held = {request.user_id: request for request in rows(context) if request.client_id == "a"}
    assert (held["p3"].attention_reason, held["p3"].legal_hold) == (LEGAL_HOLD, True)
    assert held["p4"].attention_reason == MASS_DELETION


def test_a_thousand_people_in_one_call(context: Context, person: Person) -> None:
    filed = file(context, person(), *(f"p{n}" for n in range(1000)), n_subjects=lambda: 10_000)
    assert len({receipt.id for receipt in filed.requests}) == 1000
    assert [receipt.id for receipt in filed.requests] == sorted(receipt.id for receipt in filed.requests)
    assert count(context, Tombstone) == count(context, RequestEvent) == 1000
