"""Signing in with a key, and what a page of another origin cannot do."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.console.sessions import COOKIE, LASTS
from service.context import Context
from service.keys import api_keys
from service.store.engine import session
from tests.service.console.conftest import BASE, SAME, Browser

pytestmark = pytest.mark.both_databases


def basic(user: str, key: str | bytes) -> str:
    raw = key if isinstance(key, bytes) else key.encode()
    return "Basic " + b64encode(user.encode() + b":" + raw).decode()


@pytest.fixture
def stranger(console: FastAPI) -> TestClient:
    return TestClient(console, base_url=BASE, follow_redirects=False, headers={"Accept": "text/html"})


def test_a_stranger_is_asked_to_sign_in_and_comes_back_to_the_page(
    stranger: TestClient, new_key: Callable[..., str]
) -> None:
    asked = stranger.get("/banks?x=1")
    assert asked.status_code == 303
    assert asked.headers["location"] == "/sign-in?next=/banks%3Fx%3D1"
    assert 'name="target" value="/banks?x=1"' in stranger.get(asked.headers["location"]).text
    entered = stranger.post("/sign-in", data={"key": new_key(api_keys.AUDIT), "target": "/banks"}, headers=SAME)
    assert (entered.status_code, entered.headers["location"]) == (303, "/banks")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert stranger.get("/banks").status_code == 200


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x", ""])
def test_signing_in_leads_nowhere_else(stranger: TestClient, new_key: Callable[..., str], target: str) -> None:
    entered = stranger.post("/sign-in", data={"key": new_key(api_keys.AUDIT), "target": target}, headers=SAME)
    assert entered.headers["location"] == "/"


def test_a_wrong_key_is_told_so_and_gets_no_session(stranger: TestClient, new_key: Callable[..., str]) -> None:
    refused = stranger.post("/sign-in", data={"key": "exp_no_key"}, headers=SAME)
    assert refused.status_code == 401
    assert 'role="alert"' in refused.text
    assert "exp_no_key" not in refused.text
    assert COOKIE not in stranger.cookies
    assert stranger.post("/sign-in", data={"key": new_key(api_keys.PREDICT)}, headers=SAME).status_code == 403


def test_two_authorizations_are_none(stranger: TestClient, new_key: Callable[..., str]) -> None:
    given = [("Authorization", basic("x", new_key(api_keys.AUDIT))), ("Authorization", basic("x", "exp_no_key"))]
    for headers in (given, given[::-1]):
        assert stranger.get("/", headers=headers).status_code == 422


@pytest.mark.parametrize("key", ["exp_a\0b_c", "exp_\0_c", "exp_a\ud800_c", "exp_\u00e9_c", "\0", "exp_a b_c"])
def test_keys_that_no_database_takes_are_wrong_keys(stranger: TestClient, key: str) -> None:
    raw = key.encode("utf-8", "surrogatepass")
    assert stranger.get("/", headers={"Authorization": basic("x", raw), "Accept": "*/*"}).status_code == 401
    typed = stranger.post(
        "/sign-in", content=b"key=" + quote(raw).encode(),
        headers={**SAME, "Content-Type": "application/x-www-form-urlencoded"},
    )  # fmt: skip
    assert typed.status_code == 401, typed.text


def test_cookies_that_no_database_takes_are_none(stranger: TestClient) -> None:
    until = "9" * 11
    for key_id in (b"a\0b", b"\0", b"a b", b"a_b", b""):
        cookie = COOKIE.encode() + b'="' + key_id.replace(b"\0", b"\\000") + f'.{until}.x.y"'.encode()
        assert stranger.get("/", headers={b"Cookie": cookie}).status_code == 303


def test_a_session_ends_with_signing_out_even_for_a_copy_of_its_cookie(
    signed_in: Callable[..., Browser],
) -> None:
    browser = signed_in(api_keys.AUDIT)
    copy = browser.cookies[COOKIE]
    assert browser.post("/sign-out", headers=SAME).headers["location"] == "/sign-in"
    browser.cookies.set(COOKIE, copy)
    assert browser.get("/").status_code == 303


@pytest.mark.parametrize("how", ["time", "revoked", "rotated", "altered"])
def test_a_session_ends(signed_in: Callable[..., Browser], context: Context, clock: Any, how: str) -> None:
    browser = signed_in(api_keys.AUDIT)
    assert browser.get("/").status_code == 200
    if how == "time":
        clock.advance(seconds=LASTS.total_seconds() + 1)
    elif how == "altered":
        cookie = browser.cookies[COOKIE]
        browser.cookies.clear()
        browser.cookies.set(COOKIE, cookie.replace(".", ".9", 1))
    else:
        with session(context.engine) as s:
            if how == "revoked":
                api_keys.revoke_key(s, "operator", now=context.now())
            else:
                api_keys.rotate_key(s, "operator")
            s.commit()
    assert browser.get("/").headers["location"] == "/sign-in?next=/&over=1"


def test_scripts_read_with_basic_authentication_and_change_nothing(
    console: FastAPI, new_key: Callable[..., str]
) -> None:
    script = TestClient(console, base_url=BASE)
    assert script.get("/").headers["www-authenticate"].startswith("Basic")
    script.auth = ("anybody", new_key(*api_keys.SCOPES))
    assert script.get("/").status_code == 200
    assert script.post("/file", data={"user_ids": "s1", "token": ""}, headers=SAME).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://evil.example"}, {"Origin": "http://127.0.0.1:3000"}, {"Origin": "null"},
     {**SAME, "Sec-Fetch-Site": "same-site"}, {**SAME, "Sec-Fetch-Site": "cross-site"}],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/sign-in", "/sign-out", "/file"])
def test_a_form_from_elsewhere_is_refused(
    signed_in: Callable[..., Browser], path: str, headers: dict[str, str]
) -> None:
    assert signed_in(*api_keys.SCOPES).post(path, data={"key": "x"}, headers=headers).status_code == 403


def test_a_form_needs_the_token_of_its_session(signed_in: Callable[..., Browser]) -> None:
    ours, theirs = signed_in(*api_keys.SCOPES), signed_in(*api_keys.SCOPES, key_id="other")
    page = theirs.get("/file").text
    token = page.partition('name="token" value="')[2].partition('"')[0]
    assert token
    refused = ours.post("/file", data={"user_ids": "s1", "token": token}, headers=SAME)
    assert refused.status_code == 403
    assert "reload" in refused.text
