"""The operators' listener."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from service.console.listener import Listener, create_console
from service.context import Context
from service.keys import api_keys
from service.keys.api_keys import Client
from service.launch import free_ports
from service.requests import intake
from service.requests.schemas import Filing
from service.store.engine import session
from service.store.tables import ErasureRequest
from tests.waiting import PATIENCE_SECONDS

TOKEN = "a-token-of-the-scraper"

CANARY = "canary-91c4"


@pytest.fixture
def console(context: Context, new_key: Callable[..., str]) -> Iterator[TestClient]:
    """A browser that gave a key with `audit:read`."""
    with TestClient(create_console(context)) as client:
        client.auth = ("operator", new_key(api_keys.AUDIT, key_id="operator"))
        yield client


@pytest.fixture
def request_id(context: Context) -> str:
    filed = intake.file_requests(
        context,
        Client("c", "c", frozenset(api_keys.SCOPES)),
        Filing(user_ids=[CANARY]),
        n_subjects=lambda: 40,
        most_open=9,
    )
    return filed.requests[0].id


PAGES = ("/", "/models", "/requests/{request_id}")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_needs_a_key(console: TestClient, request_id: str, new_key: Callable[..., str], path: str) -> None:
    url = path.format(request_id=request_id)
    console.auth = None
    refused = console.get(url)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic")
    console.auth = ("operator", "exp_wrong_key")
    assert console.get(url).status_code == 401
    console.auth = ("operator", new_key(api_keys.PREDICT, key_id="app"))
    assert console.get(url).status_code == 403


def test_a_report_is_only_found_for_a_run(console: TestClient, context: Context, tmp_path: Path) -> None:
    assert console.get("/runs/..%2F..%2Fkeys/reports/0").status_code == 404
    assert console.get("/runs/nothing/reports/0").status_code == 404
    assert console.get("/requests/nothing").status_code == 404
    assert console.get("/certificates/nothing").status_code == 404


def test_the_server_has_no_log_handlers_of_its_own(
    contexts: Callable[..., Any], settings: Any, clock: Any, log_stream: io.StringIO
) -> None:
    """They would print an error's message, which may name a person, past the redaction."""
    elsewhere = settings.model_copy(update={"console_port": free_ports(1)[0]})
    with contexts(elsewhere, clock) as context, Listener(context):
        logging.getLogger("uvicorn.error").error("%s", "heard")
    assert logging.getLogger("uvicorn").propagate
    assert not logging.getLogger("uvicorn").handlers
    assert "heard" in log_stream.getvalue()


def test_metrics_need_no_key_and_name_nobody(console: TestClient, context: Context, request_id: str) -> None:
    console.auth = None
    text = console.get("/metrics").text
    assert 'expunge_requests{state="queued"} 1.0' in text
    assert CANARY not in text
    with session(context.engine) as s:
        assert s.exec(select(ErasureRequest.id)).one() not in text


def test_metrics_may_ask_for_a_token_of_their_own(
    contexts: Callable[..., Any], settings: Any, clock: Any, new_key: Callable[..., str]
) -> None:
    with contexts(settings.model_copy(update={"metrics_token": TOKEN}), clock) as context:
        client = TestClient(create_console(context))
        for headers in (
            {},
            {"Authorization": f"Bearer {new_key(*api_keys.SCOPES)}"},
            {"Authorization": f"Basic {TOKEN}"},
        ):
            answer = client.get("/metrics", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert "expunge_" not in answer.text.replace("EXPUNGE_METRICS_TOKEN", "")
        assert "expunge_requests" in client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(("trusted", "secure"), [("", False), ("10.0.0.0/8", False), ("127.0.0.0/8", True)])
def test_forwarded_headers_are_believed_of_named_proxies_alone(
    contexts: Callable[..., Any], settings: Any, clock: Any, trusted: str, secure: bool
) -> None:
    elsewhere = settings.model_copy(update={"console_port": free_ports(1)[0], "trusted_proxies": trusted})
    with contexts(elsewhere, clock) as context, Listener(context):
        with session(context.engine) as s:
            _, key = api_keys.create_key(s, name="a", scopes=api_keys.SCOPES, now=context.now(), key_id="a")
            s.commit()
        url = f"http://127.0.0.1:{elsewhere.console_port}"
        headers = {"Origin": url, "X-Forwarded-Proto": "https"}
        answer = httpx.post(f"{url}/sign-in", data={"key": key}, headers=headers, timeout=PATIENCE_SECONDS)
        assert answer.status_code == 303
        assert ("Secure" in answer.headers["set-cookie"]) is secure
