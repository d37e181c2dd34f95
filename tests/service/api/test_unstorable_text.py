"""Text from outside that a database refuses (NUL, halves of surrogate pairs) or a path cannot hold: never a failure."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from service.console.listener import create_console
from service.context import Context
from service.errors import InvalidInputError, NotAuthenticatedError, NotFoundError
from service.keys import api_keys
from service.keys.api_keys import READ, SCOPES
from service.models import registry
from service.requests import runs
from service.store.engine import reading, session
from service.store.tables import ApiKey, ErasureRequest
from tests.service.api.test_routes import ROUTES
from tests.service.console.conftest import BASE, SAME

pytestmark = pytest.mark.both_databases

Check = Callable[..., dict[str, Any]]
UNFIT = ["\0", "a\0b", "\ud800", "a\udcffb", "\U0010ffff", "\ufffe", "é", "a b", "%", "_", "'", "x" * 5000]
IDS = [ascii(text[:9]) for text in UNFIT]
PATHS = [(method, path, body) for method, path, body, _ in ROUTES if "{" in path]


@pytest.fixture
def browser(context: Context, new_key: Callable[..., str]) -> Iterator[TestClient]:
    """Signed in at the console with every scope."""
    with TestClient(create_console(context), base_url=BASE, follow_redirects=False) as browser:
        assert browser.post("/sign-in", data={"key": new_key(*SCOPES)}, headers=SAME).status_code == 303
        yield browser


def token_of(browser: TestClient) -> str:
    page = browser.get("/file", headers={"Accept": "text/html"}).text
    return re.findall(r'name="token" value="(\w+)"', page)[0]


def in_path(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


@pytest.mark.parametrize("text", UNFIT, ids=IDS)
def test_ids_in_paths(client: TestClient, assert_problem: Check, text: str) -> None:
    for method, path, body in PATHS:
        response = client.request(method, re.sub(r"\{\w+\}", in_path(text), path), json=body)
        assert_problem(response, 404)


@pytest.mark.parametrize("text", UNFIT, ids=IDS)
def test_ids_in_the_console_s_paths(browser: TestClient, text: str) -> None:
    for path in ("requests/{}", "runs/{}", "runs/{}/reports/0", "certificates/{}", "certificates/{}/verification",
                 "receipts/{}", "receipts/{}/file", "requests/{}/certificate"):  # fmt: skip
        assert browser.get("/" + path.format(in_path(text))).status_code == 404
    fields = {"token": token_of(browser), "reason": "x", "legal_reason": "other", "explanation": "x"}
    for path in ("requests/{}/cancel", "requests/{}/extend", "requests/{}/approve", "requests/{}/reject",
                 "models/{}/rollback"):  # fmt: skip
        for whole in ({}, {"whole_batch": "true"}):
            answer = browser.post("/" + path.format(in_path(text)), data={**fields, **whole}, headers=SAME)
            assert answer.status_code == 404, answer.text


@pytest.mark.parametrize("text", UNFIT, ids=IDS)
def test_the_console_s_fields(browser: TestClient, text: str) -> None:
    for name in ("id", "state", "due", "page", "done", "filed"):
        assert browser.get(f"/?{name}={in_path(text)}").status_code in (200, 422)
    token = token_of(browser)
    for name in (
        "user_ids",
        "case_references",
        "regulation",
        "ground",
        "requested_at",
        "received_at",
        "callback_url",
        "form_id",
        "token",
    ):
        fields = {"token": token, "user_ids": "s1", name: text}
        body = "&".join(f"{key}={in_path(value)}" for key, value in fields.items())
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = browser.post("/file", content=body, headers={**SAME, **kind})
        assert answer.status_code in (303, 403, 422), (name, answer.text)


@pytest.mark.parametrize("text", UNFIT[:6], ids=IDS[:6])
def test_fields_of_bodies(client: TestClient, context: Context, assert_problem: Check, text: str) -> None:
    place = client.post("/erasure-requests", json={"user_ids": ["s31"], "legal_hold": True}).headers["location"]
    for name, value in (
        ("user_ids", [text]),
        ("case_references", [text]),
        ("callback_url", f"https://a.example/{text}"),
        ("ground", text),
    ):
        body = json.dumps({"user_ids": ["s4"], name: value})
        response = client.post("/erasure-requests", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code < 500, response.text
    for action, field in (("extend", "reason"), ("approve", "reason")):
        body = json.dumps({field: text})
        response = client.post(f"{place}/{action}", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code < 500, response.text
    body = json.dumps({"legal_reason": "other", "explanation": text})
    response = client.post(f"{place}/reject", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code < 500, response.text
    with reading(context.engine) as s:
        stored = [row.model_dump_json() for row in s.exec(select(ErasureRequest))]
    assert not any("\\u0000" in row for row in stored)


@pytest.mark.parametrize("text", UNFIT, ids=IDS)
def test_parameters_and_cursors(client: TestClient, text: str) -> None:
    for name in ("state", "batch_id", "due_before", "cursor", "limit"):
        assert client.get(f"/erasure-requests?{name}={in_path(text)}").status_code in (200, 422)


@pytest.mark.parametrize(
    "content",
    [
        ["2026-01-31T12:00:00+00:00", "a\0b"], ["9999-12-31T23:59:59-12:00", "a"], ["0001-01-01T00:00:00+12:00", "a"],
        ["2026-01-31T12:00:00+00:00", "\ud800"], ["2026-01-31T12:00:00+00:00", 5], [5, "a"], [[], {}], {}, 5, None,
    ],
    ids=str,
)  # fmt: skip
def test_cursors_that_we_never_gave(client: TestClient, assert_problem: Check, content: object) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
    assert_problem(client.get("/erasure-requests", params={"cursor": cursor}), 422)


@pytest.mark.parametrize("text", UNFIT, ids=IDS)
def test_keys(context: Context, text: str) -> None:
    for token in (f"exp_{text}_x", f"exp_a_{text}", text):
        with pytest.raises(NotAuthenticatedError):
            api_keys.authenticate(context.engine, token, now=context.now())
    with session(context.engine) as s:
        for change in (api_keys.find_key, api_keys.rotate_key):
            with pytest.raises(NotFoundError) as refused:
                change(s, text)
            assert str(refused.value).isprintable()
        with pytest.raises(InvalidInputError):
            api_keys.create_key(s, name="a", scopes=[READ], now=context.now(), key_id=text)


@pytest.mark.parametrize("name", ["", " ", "a\0b", "\ud800", "a\nb", "a\x1b[31mb", "\u202eab"], ids=ascii)
def test_names_of_keys(context: Context, name: str) -> None:
    with session(context.engine) as s:
        with pytest.raises(InvalidInputError, match="name"):
            api_keys.create_key(s, name=name, scopes=[READ], now=context.now(), key_id="a")
        assert s.get(ApiKey, "a") is None


@pytest.mark.parametrize("text", UNFIT, ids=IDS)
def test_names_of_runs_and_model_versions(context: Context, text: str) -> None:
    with reading(context.engine) as s:
        with pytest.raises(NotFoundError):
            registry.find(s, text)
        with pytest.raises(NotFoundError):
            runs.get_run(s, text)
