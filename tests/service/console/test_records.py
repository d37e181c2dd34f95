"""What a privacy officer keeps: receipts and the register."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import col, select

from service.console import records
from service.console.register import COLUMNS, as_csv, entry_of
from service.context import Context
from service.keys import api_keys
from service.keys.keyring import commitment
from service.requests import states
from service.requests.schemas import Filed
from service.store.engine import reading, session
from service.store.tables import ErasureRequest
from tests.service.console.conftest import Browser

CANARY = "canary-5b02"


def requests(context: Context) -> list[ErasureRequest]:
    with reading(context.engine) as s:
        return list(s.exec(select(ErasureRequest).order_by(col(ErasureRequest.id))))


def file(browser: Browser, *user_ids: str, **fields: str) -> str:
    """File at the console; gives the receipt's place."""
    answer: Any = browser.form("/file", "/file", user_ids="\n".join(user_ids), **fields)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"]).partition("?")[0]


def test_a_receipt_has_what_must_be_kept_in_the_order_of_the_ids(
    signed_in: Callable[..., Browser], context: Context
) -> None:
    browser = signed_in(*api_keys.SCOPES)
    ids = [f"{CANARY}-{n}" for n in (3, 1, 2)]
    place = file(browser, *ids, case_references="DSR/C\n\nDSR/B", received_at="2026-01-20")
    page, answer = browser.get(place), browser.get(f"{place}/file")
    assert (page.status_code, answer.status_code) == (200, 200)
    assert "in the order of the user ids of the call" in page.text
    assert answer.headers["content-disposition"] == f'attachment; filename="receipt-{place[10:18]}.json"'
    content = answer.json()
    assert "in the order of the user ids of the call" in content.pop("order")
    filed = Filed.model_validate_json(json.dumps(content))
    assert [receipt.case_reference for receipt in filed.requests] == ["DSR/C", None, "DSR/B"]
    for user_id, receipt in zip(ids, filed.requests, strict=True):
        assert receipt.commitment == commitment(bytes.fromhex(str(receipt.commitment_salt)), user_id)
    assert {f"{receipt.due_at:%Y-%m-%d}" for receipt in filed.requests} == {"2026-02-20"}
    shown = re.findall(r"<code>([0-9a-f]{32})</code>", page.text)
    assert shown == [receipt.commitment_salt for receipt in filed.requests]
    assert re.findall(r'<a href="/requests/([\w-]+)"><code>', page.text) == [row.id for row in requests(context)]
    assert CANARY not in page.text + answer.text


def test_a_receipt_is_its_client_s_alone_and_loses_the_salt_with_the_end(
    signed_in: Callable[..., Browser], context: Context
) -> None:
    browser, other = signed_in(*api_keys.SCOPES), signed_in(*api_keys.SCOPES, key_id="other")
    place = file(browser, CANARY)
    salt = requests(context)[0].commitment_salt
    assert str(salt) in browser.get(place).text
    for each in (place, f"{place}/file"):
        assert other.get(each).status_code == 404
    request = f"{place.replace('receipts', 'requests')}-0001"
    assert browser.form(request, f"{request}/cancel").status_code == 303  # type: ignore[attr-defined]
    page = browser.get(place).text
    assert str(salt) not in page
    assert "destroyed with the user id" in page
    assert browser.get(f"{place}/file").json()["requests"][0]["commitment_salt"] is None
    assert browser.get(f"{place[:-1]}/file").status_code == 404


@pytest.fixture
def registered(signed_in: Callable[..., Browser], context: Context, clock: Any) -> Browser:
    """Somebody who sees a request of each end, one that is late and one that is open."""
    browser = signed_in(*api_keys.SCOPES)

    def filed(user_id: str, **fields: str) -> str:
        return f"{file(browser, user_id, **fields)}-0001".replace("receipts", "requests")

    completed = filed(f"{CANARY}1", case_references="DSR/1", received_at="2026-01-10", ground="consent_withdrawn")
    rejected, cancelled = filed(f"{CANARY}2", received_at="2026-01-11"), filed(f"{CANARY}3", received_at="2026-01-12")
    filed(f"{CANARY}4", received_at="2025-12-20")
    extended = filed(f"{CANARY}5", received_at="2026-01-13")
    forms: list[Any] = [
        browser.form(cancelled, f"{cancelled}/cancel"),
        browser.form(rejected, f"{rejected}/reject", legal_reason="legal_claims", explanation="Evidence, of a case."),
        browser.form(extended, f"{extended}/extend", reason="=1+1"),
    ]
    assert [form.status_code for form in forms] == [303] * 3
    with session(context.engine) as s:
        request = s.get_one(ErasureRequest, completed.rpartition("/")[2])
        for state, fields in (
            ("unlearning", {}), ("purging", {}), ("completed", {"outcome": "erased", "certificate_id": "cert-1"}),
        ):  # fmt: skip
            states.move(s, request, state, now=clock.advance(days=5), **fields)
        s.commit()
    return signed_in(api_keys.AUDIT, key_id="auditor")  # the other session is over by now


def table(browser: Browser, query: str = "") -> list[dict[str, str]]:
    answer = browser.get(f"/register/file{query}")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))


def test_the_register_says_of_each_request_what_became_of_it_and_whether_in_time(registered: Browser) -> None:
    rows = table(registered)
    assert [row["Received"] for row in rows] == [
        f"{day}T00:00:00Z" for day in ("2025-12-20", "2026-01-10", "2026-01-11", "2026-01-12", "2026-01-13")
    ]
    late, completed, rejected, cancelled, extended = rows
    assert (late["Outcome"], late["Due"], late["Ended"], late["In time"]) == (
        "queued", "2026-01-20T00:00:00Z", "", "no",
    )  # fmt: skip
    assert (completed["Case reference"], completed["Outcome"], completed["Ground"], completed["Certificate"]) == (
        "DSR/1", "erased", "consent withdrawn", "cert-1",
    )  # fmt: skip
    assert (completed["Ended"], completed["In time"]) == ("2026-02-15T12:00:00Z", "no")
    assert (rejected["Outcome"], rejected["Rejected because"], rejected["In time"]) == (
        "rejected", "legal claims: Evidence, of a case.", "yes",
    )  # fmt: skip
    assert (cancelled["Outcome"], cancelled["In time"]) == ("cancelled", "")
    assert (extended["Due"], extended["Ended"], extended["In time"]) == ("2026-04-13T00:00:00Z", "", "")
    page = registered.get("/register").text
    for words in ("DSR/1", "legal claims: Evidence, of a case.", "extended: =1+1", *(row["Number"] for row in rows)):
        assert words in page, words
    assert re.findall(r"<b>(\d+)</b>", page) == ["5", "1", "2", "2"]
    assert CANARY not in page


def test_no_cell_is_a_formula(registered: Browser, context: Context) -> None:
    assert [row["Extended because"] for row in table(registered)] == ["", "", "", "", "'=1+1"]
    for begin in ("=", "+", "-", "@", "\t", "\r"):
        request = requests(context)[0]
        request.extension_reason = f'{begin}1, "a"'
        (row,) = csv.DictReader(io.StringIO(as_csv([entry_of(request, context.now())]), newline=""))
        assert row["Extended because"] == f'\'{begin}1, "a"'


def test_the_register_is_narrowed_to_days_of_receipt(
    registered: Browser, signed_in: Callable[..., Browser], monkeypatch: pytest.MonkeyPatch
) -> None:
    def days(query: str) -> list[str]:
        return [row["Received"][:10] for row in table(registered, query)]

    assert days("?since=2026-01-11&until=2026-01-12") == ["2026-01-11", "2026-01-12"]
    assert days("?until=2025-12-20&since=") == ["2025-12-20"]
    assert days("?since=2026-02-01") == []
    assert 'href="/register/file?since=2026-01-11"' in registered.get("/register?since=2026-01-11").text
    assert "No request was received" in registered.get("/register?since=2026-02-01").text
    assert registered.get("/register?since=yesterday").status_code == 422
    monkeypatch.setattr(records, "MOST_ON_PAGE", 2)
    assert "Narrow the days to see the other 3" in registered.get("/register").text
    stranger = signed_in(api_keys.READ, key_id="stranger")
    assert table(stranger) == []
    assert stranger.get("/register/file").content.decode("utf-8-sig") == ",".join(COLUMNS) + "\r\n"
    assert 'href="/register"' in stranger.get("/").text
