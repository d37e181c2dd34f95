"""Filing and deciding at the console: the API's functions behind forms."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import col, select

from service.context import Context
from service.keys import api_keys
from service.models import registry
from service.store.engine import reading, session
from service.store.tables import Deployment, ErasureRequest, ModelVersion, RollbackOrder
from tests.service.console.conftest import SAME, Browser

CANARY = "canary-4e1b"


def requests(context: Context) -> list[ErasureRequest]:
    with reading(context.engine) as s:
        return list(s.exec(select(ErasureRequest).order_by(col(ErasureRequest.id))))


def file_one(browser: Browser, **fields: str) -> str:
    answer: Any = browser.form("/file", "/file", **{"user_ids": CANARY, **fields})
    assert answer.status_code == 303, answer.text
    receipt, _, done = str(answer.headers["location"]).partition("?")
    assert done == "done=filed"
    return f"{receipt.replace('/receipts/', '/requests/')}-0001"


def test_the_form_files_what_the_api_would(signed_in: Callable[..., Browser], context: Context) -> None:
    browser = signed_in(*api_keys.SCOPES)
    place = file_one(
        browser, ground="objection", regulation="uk_gdpr", requested_at="2026-01-20",
        callback_url="https://privacy.example.org/x",
    )  # fmt: skip
    (row,) = requests(context)
    assert place == f"/requests/{row.id}"
    assert (row.ground, row.regulation, row.callback_url) == ("objection", "uk_gdpr", "https://privacy.example.org/x")
    assert (row.client_id, f"{row.requested_at:%Y-%m-%d}") == ("operator", "2026-01-20")
    page = browser.get(place)
    assert page.status_code == 200
    assert CANARY not in page.text


def test_case_references_stand_beside_the_ids_of_their_lines(
    signed_in: Callable[..., Browser], context: Context
) -> None:
    browser = signed_in(*api_keys.SCOPES)
    browser.form("/file", "/file", user_ids=f"{CANARY}\n\np2\np3\n", case_references="DSR/A\n\n\n DSR/C \n")
    rows = requests(context)
    assert [(row.user_id, row.case_reference) for row in rows] == [(CANARY, "DSR/A"), ("p2", None), ("p3", "DSR/C")]
    assert browser.get("/").text.count('<span class="under">DSR/C</span>') == 1
    assert "Case reference DSR/C" in browser.get(f"/requests/{rows[2].id}").text


def test_a_request_received_long_ago_is_shown_as_overdue(signed_in: Callable[..., Browser], context: Context) -> None:
    browser = signed_in(*api_keys.SCOPES)
    answer: Any = browser.form("/file", "/file", user_ids=CANARY, received_at="2025-12-24")
    (row,) = requests(context)
    assert f"{row.due_at:%Y-%m-%d %H:%M}" == "2026-01-24 00:00"
    assert "The deadline had passed when it was filed" in browser.get(answer.headers["location"]).text
    assert f'<a href="/requests/{row.id}">' in browser.get("/?due=late").text


def test_one_form_sent_twice_files_once(signed_in: Callable[..., Browser], context: Context) -> None:
    browser = signed_in(*api_keys.SCOPES)
    fields = {"form_id": "one-form", "user_ids": CANARY}
    assert file_one(browser, **fields) == file_one(browser, **fields)
    assert len(requests(context)) == 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"user_ids": "  \n "}, "User ids"),
        ({"user_ids": "a\na"}, "Expected each user id once"),
        ({"user_ids": "a\n" + "b" * 300}, "User ids, line 2"),
        ({"callback_url": "http://example.org"}, "Callback URL: Expected an https URL"),
        ({"callback_url": f"https://example.org/{CANARY}"}, "without user ids"),
        ({"ground": "because"}, "Ground"),
        ({"requested_at": "2031-01-01"}, "not to lie in the future"),
        ({"requested_at": "soon"}, "Asked on"),
        ({"received_at": "2031-01-01"}, "not to lie in the future"),
        ({"received_at": "2025-01-30"}, "at most a year ago"),
        ({"received_at": "soon"}, "Received on"),
        ({"case_references": "=1+1"}, "Case references, line 1: Expected a case reference of letters"),
        ({"case_references": f"DSR {CANARY}"}, "neither contain a user id"),
        ({"case_references": "DSR-1\nDSR-2"}, "User ids, line 2"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_stored(
    signed_in: Callable[..., Browser], context: Context, fields: dict[str, str], sentence: str
) -> None:
    answer: Any = signed_in(*api_keys.SCOPES).form("/file", "/file", **{"user_ids": CANARY, **fields})
    assert answer.status_code == 422
    alert = answer.text.partition('role="alert"')[2].partition("</div>")[0]
    assert sentence in alert
    assert CANARY not in alert
    assert requests(context) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [("user_ids", ["a", "b"]), ("user_ids", ["", "b"]), ("legal_hold", ["true", "false"]), ("form_id", ["1", "2"])],
)
def test_a_field_given_twice_files_nothing(
    signed_in: Callable[..., Browser], context: Context, name: str, values: list[str]
) -> None:
    browser = signed_in(*api_keys.SCOPES)
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', browser.get("/file").text))
    fields: dict[str, str | list[str]] = {**hidden, "user_ids": CANARY, name: values}
    answer = browser.post("/file", data=fields, headers=SAME)
    assert (answer.status_code, requests(context)) == (422, [])
    assert "Expected each field once" in answer.text
    assert browser.get("/?id=a&id=b").status_code == 422


def test_several_people_get_a_number_each(signed_in: Callable[..., Browser], context: Context) -> None:
    browser = signed_in(*api_keys.SCOPES)
    answer: Any = browser.form("/file", "/file", user_ids="a\r\n\r\n b \r\n")
    listed = browser.get(answer.headers["location"])
    assert "each has its own number" in listed.text
    assert all(row.id in listed.text for row in requests(context))
    assert len(requests(context)) == 2


def test_a_request_is_cancelled_in_its_hold_window_only(
    signed_in: Callable[..., Browser], context: Context, clock: Any
) -> None:
    browser = signed_in(*api_keys.SCOPES)
    first, second = file_one(browser), file_one(browser, user_ids="other")
    cancelled: Any = browser.form(first, f"{first}/cancel")
    assert cancelled.status_code == 303
    assert "will not be carried out" in browser.get(cancelled.headers["location"]).text
    page = browser.get(second).text
    assert "Cancel this request" in page
    clock.advance(hours=2)
    assert "Cancel this request" not in browser.get(second).text
    late: Any = browser.form(second, f"{second}/cancel")
    assert late.status_code == 409
    assert "hold window" in late.text
    assert sorted(row.state for row in requests(context)) == ["cancelled", "queued"]


def test_an_administrator_decides(signed_in: Callable[..., Browser], context: Context) -> None:
    browser = signed_in(*api_keys.SCOPES)
    held, other = file_one(browser, legal_hold="true"), file_one(browser, user_ids="other")
    assert "Needs attention" in browser.get(held).text
    named: Any = browser.form(held, f"{held}/approve", reason=f"{CANARY} called")
    assert named.status_code == 422
    assert "does not name the person" in named.text
    assert browser.form(held, f"{held}/approve", reason="Hold lifted.").status_code == 303  # type: ignore[attr-defined]
    assert browser.form(other, f"{other}/extend", reason="Many requests.").status_code == 303  # type: ignore[attr-defined]
    unfounded: Any = browser.form(other, f"{other}/reject", legal_reason="", explanation="x")
    assert unfounded.status_code == 422
    rejected: Any = browser.form(other, f"{other}/reject", legal_reason="legal_claims", explanation="Evidence.")
    assert rejected.status_code == 303
    states = {row.extension_reason: row.state for row in requests(context)}
    assert states == {None: "queued", "Many requests.": "rejected"}


def test_a_held_call_is_decided_as_a_whole(signed_in: Callable[..., Browser], context: Context) -> None:
    browser = signed_in(*api_keys.SCOPES)
    browser.form("/file", "/file", user_ids="\n".join(f"p{i}" for i in range(9)))  # no data: any share is large
    place = f"/requests/{requests(context)[0].id}"
    assert "All 9 held requests of this call" in browser.get(place).text
    browser.form(place, f"{place}/approve", reason="Confirmed.", whole_batch="true")
    assert {row.state for row in requests(context)} == {"queued"}


@pytest.mark.parametrize(
    ("scopes", "shown"),
    [
        ((api_keys.READ,), set()),
        ((api_keys.READ, api_keys.WRITE), {"Cancel"}),
        ((api_keys.ADMIN,), {"Extend the deadline", "Reject"}),
        (api_keys.SCOPES, {"Cancel", "Extend the deadline", "Reject"}),
    ],
)
def test_a_key_is_offered_and_allowed_what_its_scopes_allow(
    signed_in: Callable[..., Browser], context: Context, scopes: tuple[str, ...], shown: set[str]
) -> None:
    """The one who files is called like the one who looks, so that the request is their own."""
    visitor = signed_in(*scopes)
    from service.requests import intake
    from service.requests.schemas import Filing

    client = api_keys.Client("operator", "operator", frozenset(api_keys.SCOPES))
    filed = intake.file_requests(context, client, Filing(user_ids=[CANARY]), n_subjects=lambda: 9, most_open=9)
    place = f"/requests/{filed.requests[0].id}"
    page = visitor.get(place).text
    assert {
        each for each in ("Cancel", "Approve", "Extend the deadline", "Reject") if f"<summary>{each}<" in page
    } == shown
    for action, scope in (
        ("cancel", api_keys.WRITE),
        ("approve", api_keys.ADMIN),
        ("extend", api_keys.ADMIN),
        ("reject", api_keys.ADMIN),
    ):
        answer: Any = visitor.form(place, f"{place}/{action}")
        assert (answer.status_code == 403) == (scope not in scopes), action
    assert (visitor.get("/file").status_code == 403) == (api_keys.WRITE not in scopes)


def version(context: Context, digest: str, generation: int, state: str) -> ModelVersion:
    path = registry.path(context.settings, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return ModelVersion(
        digest=digest, line="default", state=state, generation=generation, signature="", created_at=context.now()
    )


def test_an_administrator_orders_a_rollback_where_it_is_allowed(
    signed_in: Callable[..., Browser], context: Context
) -> None:
    older, active = "a" * 64, "b" * 64
    with session(context.engine) as s:
        s.add_all([version(context, older, 1, "retired"), version(context, active, 2, "active")])
        s.add(Deployment(line="default", committed_generation=2, committed_digest=active, updated_at=context.now()))
        s.commit()
    assert "Go back to generation" not in signed_in(api_keys.AUDIT, key_id="auditor").get("/models").text
    browser = signed_in(api_keys.ADMIN)
    page = browser.get("/models").text
    assert "Go back to generation 1" in page
    assert 'data-ask="Serve generation 1 again' in page
    refused: Any = browser.form("/models", f"/models/{active}/rollback", reason="x")
    assert refused.status_code == 409
    assert "this one is in service" in refused.text
    assert browser.form("/models", f"/models/{older}/rollback", reason=" ").status_code == 422  # type: ignore[attr-defined]
    assert browser.form("/models", f"/models/{older}/rollback", reason="Worse.").status_code == 303  # type: ignore[attr-defined]
    assert "Going back to" in browser.get("/models").text
    with reading(context.engine) as s:
        (order,) = s.exec(select(RollbackOrder))
    assert (order.digest, order.reason, order.ordered_by) == (older, "Worse.", "operator")
