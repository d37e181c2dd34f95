"""The certificate as a sheet for the person who asked."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import select

from service.console.languages import LANGUAGES
from service.context import Context
from service.keys import api_keys
from service.keys.api_keys import Client
from service.requests import intake
from service.requests.schemas import Filing
from service.store.engine import reading, session
from service.store.tables import CertificateRecord, ErasureRequest
from tests.service import tiny
from tests.service.console.conftest import Erased, erase, script


def file(context: Context, client_id: str, user_id: str, case_reference: str) -> str:
    client = Client(client_id, client_id, frozenset(api_keys.SCOPES))
    received = context.now() - timedelta(days=10)
    filing = Filing(user_ids=[user_id], case_references=[case_reference], received_at=received)
    filed = intake.file_requests(context, client, filing, n_subjects=lambda: 99, most_open=9)
    return filed.requests[0].id


@pytest.mark.parametrize("code", LANGUAGES)
def test_the_sheet_says_what_was_done_in_the_reader_s_language(erased: Erased, code: str) -> None:
    answer = erased.client.get(f"/requests/{erased.passed.request_id}/certificate", headers={"Accept-Language": code})
    page, language = answer.text, LANGUAGES[code]
    assert (answer.status_code, answer.headers["content-language"]) == (200, code)
    assert f'<html lang="{code}">' in page
    for key in ("title", "request", "certified", "destroyed", "searched", "limits", "check"):
        assert f">{language[key]}<" in page, key
    assert language["unlearned"].partition("{")[0].replace("'", "&#39;") in page
    assert all(text.replace("'", "&#39;") in page for text in language["sentences"].values())
    assert language["kinds"]["image files"] in page
    assert f'<time datetime="{erased.context.now().isoformat()}">{language.moment(erased.context.now())}</time>' in page
    assert str(erased.passed.request_id) in page
    assert str(erased.passed.id) in page
    assert tiny.people(erased.context)[0] not in page
    assert re.search(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=\"/static/times.js\">)", page) is None
    wanted = erased.client.get(f"/requests/{erased.passed.request_id}/certificate?lang=fr")
    assert wanted.headers["content-language"] == "fr"


def test_a_certificate_that_is_not_genuine_is_not_explained(erased: Erased) -> None:
    with session(erased.context.engine) as s:
        record = s.get_one(CertificateRecord, erased.passed.id)
        envelope: dict[str, Any] = record.envelope
        payload = "A" + envelope["envelope"]["payload"][1:]
        record.envelope = {**envelope, "envelope": {**envelope["envelope"], "payload": payload}}
        s.add(record)
        s.commit()
    page = erased.client.get(f"/requests/{erased.passed.request_id}/certificate").text
    assert LANGUAGES["en"]["not_genuine"] in page
    assert LANGUAGES["en"]["done"] not in page


def test_who_shares_a_certificate_sees_the_own_case_reference_only(tiny_context: Context) -> None:
    person = tiny.people(tiny_context)[0]
    first, second = file(tiny_context, "one", person, "CASE-A"), file(tiny_context, "two", person, "CASE-B")
    nobody = file(tiny_context, "two", "nobody", "CASE-C")
    erase(tiny_context, tiny.people(tiny_context)[1])
    with reading(tiny_context.engine) as s:
        rows = {row.id: row for row in s.exec(select(ErasureRequest))}
    assert rows[first].certificate_id == rows[second].certificate_id
    client = script(tiny_context, api_keys.READ, key_id="two")
    page = client.get(f"/requests/{second}/certificate").text
    assert "CASE-B" in page
    assert "CASE-A" not in page
    assert "21 January 2026" in page
    assert client.get(f"/requests/{first}/certificate").status_code == 404
    empty = client.get(f"/requests/{nobody}/certificate").text
    assert LANGUAGES["en"]["nothing_held"] in empty
    assert LANGUAGES["en"]["nothing"] in empty


def test_a_request_without_a_certificate_has_no_sheet(tiny_context: Context) -> None:
    request_id = file(tiny_context, "one", "nobody", "CASE-A")
    client = script(tiny_context, api_keys.READ, key_id="one")
    assert client.get(f"/requests/{request_id}/certificate").status_code == 404
    assert "For the person" not in client.get(f"/requests/{request_id}").text
