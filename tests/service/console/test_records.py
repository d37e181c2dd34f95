"""What a privacy officer keeps: receipts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from sqlmodel import col, select

from service.context import Context
from service.keys import api_keys
from service.keys.keyring import commitment
from service.requests.schemas import Filed
from service.store.engine import reading
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
    place = file(browser, *ids, references="DSR/C\n\nDSR/B", received_at="2026-01-20")
    page, answer = browser.get(place), browser.get(f"{place}/file")
    assert (page.status_code, answer.status_code) == (200, 200)
    assert "in the order of the user ids of the call" in page.text
    assert answer.headers["content-disposition"] == f'attachment; filename="receipt-{place[10:18]}.json"'
    content = answer.json()
    assert "in the order of the user ids of the call" in content.pop("order")
    filed = Filed.model_validate_json(json.dumps(content))
    assert [receipt.reference for receipt in filed.requests] == ["DSR/C", None, "DSR/B"]
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
