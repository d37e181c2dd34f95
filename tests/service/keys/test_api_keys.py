from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from service.context import Context
from service.errors import InvalidInputError, NotAllowedError, NotAuthenticatedError, NotFoundError
from service.http import guard
from service.http.guard import KnownKeys, bearer_token, require
from service.keys import api_keys
from service.keys.api_keys import Client
from service.store.engine import reading, session
from service.store.tables import ApiKey

pytestmark = pytest.mark.both_databases


def counting(engine: sa.Engine) -> list[str]:
    """Statements the engine runs from here on."""
    seen: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def _note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    return seen


def test_a_key_names_its_client_and_is_stored_as_a_hash(context: Context, new_key: Callable[..., str]) -> None:
    token = new_key("erasure:read", "predict", key_id="a-1")
    assert token.startswith("exp_a-1_")
    assert len(token.removeprefix("exp_a-1_")) >= 43  # 256 bits
    with reading(context.engine) as s:
        row = api_keys.find_key(s, "a-1")
    assert row.sha256 == hashlib.sha256(token.encode()).hexdigest()
    assert row.scopes == ["predict", "erasure:read"]
    client = api_keys.authenticate(context.engine, token, now=context.now())
    assert client == Client("a-1", "a-1", frozenset({"predict", "erasure:read"}))


def test_two_keys_never_share_a_secret(new_key: Callable[..., str]) -> None:
    secrets = {new_key("predict", key_id=f"k{n}").split("_", 2)[2] for n in range(20)}
    assert len(secrets) == 20


def spoil(token: str) -> list[str]:
    prefix, key_id, secret = token.split("_", 2)
    return [
        "", "exp", "exp_", f"exp_{key_id}", f"exp_{key_id}_", f"exp_nobody_{secret}", f"EXP_{key_id}_{secret}",
        f"exp_{key_id}_{secret[:-1]}", f"exp_{key_id}_{secret}x", f"exp_{key_id}_{secret.swapcase()}", secret,
        f"{token} ", "exp_\u00e9_x", "exp_'; drop table api_keys;--_x", prefix * 9999,
    ]  # fmt: skip


def test_anything_but_the_key_itself_is_refused_with_one_sentence(
    context: Context, new_key: Callable[..., str]
) -> None:
    token = new_key("predict")
    messages = set()
    for wrong in spoil(token):
        with pytest.raises(NotAuthenticatedError) as caught:
            api_keys.authenticate(context.engine, wrong, now=context.now())
        messages.add(caught.value.detail)
    assert len(messages) == 1


def test_a_key_ends_at_its_expiry_and_when_revoked(context: Context, clock: Any, new_key: Callable[..., str]) -> None:
    short = new_key("predict", key_id="short", expires_at=clock.at + timedelta(hours=1))
    ended = new_key("predict", key_id="ended")
    keys = KnownKeys(context.engine, clock)
    assert keys.authenticate(short).id == "short"
    clock.advance(hours=1)
    with pytest.raises(NotAuthenticatedError):
        keys.authenticate(short)
    with session(context.engine) as s:
        api_keys.revoke_key(s, "ended", now=clock())
        first = api_keys.revoke_key(s, "ended", now=clock.advance(hours=1)).revoked_at
        s.commit()
    assert first == clock.at - timedelta(hours=1)
    with pytest.raises(NotAuthenticatedError):
        api_keys.authenticate(context.engine, ended, now=clock())


def test_after_a_rotation_the_old_secret_may_work_for_a_while(
    context: Context, clock: Any, new_key: Callable[..., str]
) -> None:
    first = new_key("predict")

    def rotate(**overlap: Any) -> str:
        with session(context.engine) as s:
            _, token = api_keys.rotate_key(s, "client", **overlap)
            s.commit()
        return token

    second = rotate(old_until=clock() + timedelta(hours=1))
    for token in (first, second):
        assert api_keys.authenticate(context.engine, token, now=clock()).id == "client"
    clock.advance(hours=1)
    with pytest.raises(NotAuthenticatedError):
        api_keys.authenticate(context.engine, first, now=clock())
    third = rotate(old_until=clock() + timedelta(hours=1))
    fourth = rotate(old_until=clock() + timedelta(hours=1))
    for token, works in ((second, False), (third, True), (fourth, True)):  # two secrets at most
        if works:
            api_keys.authenticate(context.engine, token, now=clock())
        else:
            with pytest.raises(NotAuthenticatedError):
                api_keys.authenticate(context.engine, token, now=clock())
    with session(context.engine) as s:
        api_keys.revoke_key(s, "client", now=clock())
        s.commit()
    for token in (third, fourth):
        with pytest.raises(NotAuthenticatedError):
            api_keys.authenticate(context.engine, token, now=clock())


def test_expire_and_rotate(context: Context, clock: Any, new_key: Callable[..., str]) -> None:
    old = new_key("predict")
    with session(context.engine) as s:
        row, new = api_keys.rotate_key(s, "client")
        s.commit()
    assert row.id == "client"
    assert api_keys.authenticate(context.engine, new, now=clock()).id == "client"
    with pytest.raises(NotAuthenticatedError):
        api_keys.authenticate(context.engine, old, now=clock())
    with session(context.engine) as s:
        api_keys.expire_key(s, "client", at=clock())
        s.commit()
    with pytest.raises(NotAuthenticatedError):
        api_keys.authenticate(context.engine, new, now=clock())
    with session(context.engine) as s:
        api_keys.revoke_key(s, "client", now=clock())
        with pytest.raises(NotFoundError, match="create a new one"):
            api_keys.rotate_key(s, "client")
        with pytest.raises(NotFoundError):
            api_keys.rotate_key(s, "nobody")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scopes": []}, "none"),
        ({"scopes": ["predict", "root"]}, "root"),
        ({"key_id": "a_b"}, "hyphens"),
        ({"key_id": ""}, "hyphens"),
        ({"key_id": "é"}, "hyphens"),
        ({"expires_at": "now"}, "expiry"),
    ],
)
def test_unfit_keys_are_not_made(context: Context, options: dict[str, object], reason: str) -> None:
    if "expires_at" in options:
        options = {"expires_at": context.now()}
    values = {"name": "n", "scopes": ["predict"], "now": context.now(), "key_id": "a"} | options
    with session(context.engine) as s, pytest.raises(InvalidInputError, match=reason):
        api_keys.create_key(s, **values)  # type: ignore[arg-type]


def test_listing_and_whether_anybody_can_come_in(context: Context, clock: Any, new_key: Callable[..., str]) -> None:
    def usable() -> bool:
        with reading(context.engine) as s:
            return api_keys.any_usable_key(s, now=clock())

    assert not usable()
    new_key("predict", key_id="a", expires_at=clock.at + timedelta(seconds=1))
    assert usable()
    clock.advance(seconds=1)
    assert not usable()
    new_key("predict", key_id="b")
    assert usable()
    with session(context.engine) as s:
        api_keys.revoke_key(s, "b", now=clock())
        s.commit()
        assert [row.id for row in api_keys.list_keys(s)] == ["a", "b"]
    assert not usable()


def test_a_known_key_costs_no_read_and_a_revoked_one_works_no_second_longer(
    context: Context, clock: Any, new_key: Callable[..., str]
) -> None:
    token = new_key("predict")
    keys = KnownKeys(context.engine, clock)
    assert keys.remembered(token) is None
    keys.authenticate(token)
    seen = counting(context.engine)
    for _ in range(10):
        assert keys.authenticate(token).id == "client"
    assert not [statement for statement in seen if "api_keys" in statement]
    with session(context.engine) as s:
        api_keys.revoke_key(s, "client", now=clock())
        s.commit()
    clock.advance(seconds=guard.REMEMBER_SECONDS)
    with pytest.raises(NotAuthenticatedError):
        keys.authenticate(token)


def test_a_clock_set_back_keeps_no_key_alive(context: Context, clock: Any, new_key: Callable[..., str]) -> None:
    token = new_key("predict")
    keys = KnownKeys(context.engine, clock)
    keys.authenticate(token)
    clock.advance(days=-1)
    assert keys.remembered(token) is None


def test_what_is_remembered_is_bounded(context: Context, clock: Any, new_key: Callable[..., str]) -> None:
    keys = KnownKeys(context.engine, clock, most=3)
    tokens = [new_key("predict", key_id=f"k{n}") for n in range(7)]
    for token in tokens:
        keys.authenticate(token)
    assert sum(keys.remembered(token) is not None for token in tokens) <= 3


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "exp_a_b", "Bearerexp_a_b"])
def test_other_authorization_headers_are_refused(header: str | None) -> None:
    with pytest.raises(NotAuthenticatedError, match="Authorization: Bearer"):
        bearer_token(header)


def test_bearer_is_read_in_any_case() -> None:
    assert bearer_token("bearer abc") == bearer_token("Bearer  abc ") == "abc"


def test_demand_is_any_of_the_scopes() -> None:
    client = Client("a", "a", frozenset({"audit:read"}))
    assert client.demand("erasure:read", "audit:read") is client
    with pytest.raises(NotAllowedError, match="admin or predict"):
        client.demand("admin", "predict")


@pytest.mark.parametrize("scopes", [(), ("root",)])
def test_a_route_cannot_ask_for_what_does_not_exist(scopes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="Expected scopes"):
        require(*scopes)


def test_the_body_is_not_read_before_the_key(app: FastAPI) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("The body was read.")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer exp_a_b"), (b"content-type", b"application/json"), (b"content-length", b"9")]
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/erasure-requests", "query_string": b"",
        "headers": headers, "scheme": "http", "server": ("test", 80), "client": ("test", 1), "root_path": "",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 401


def test_a_guard_works_on_a_plain_route(context: Context, clock: Any, new_key: Callable[..., str]) -> None:
    app = FastAPI()
    app.state.keys = KnownKeys(context.engine, clock)
    guard = require("predict")

    @app.get("/")
    async def root(request: Request) -> str:
        return (await guard.admit(request)).id

    headers = {"Authorization": f"Bearer {new_key('predict')}"}
    with TestClient(app) as client:
        assert client.get("/", headers=headers).json() == "client"


def test_no_secret_is_printed(context: Context, new_key: Callable[..., str]) -> None:
    token = new_key("predict")
    with reading(context.engine) as s:
        row = s.get(ApiKey, "client")
    assert token.split("_", 2)[2] not in repr(row)
