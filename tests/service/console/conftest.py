"""A console over the service's test database, and visitors of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.console.listener import create_console
from service.context import Context

BASE = "http://127.0.0.1:3001"
SAME = {"Origin": BASE}


class Browser(TestClient):
    """A browser that follows no redirect by itself and says where its forms come from."""

    def form(self, page: str, action: str, **fields: str) -> object:
        """Send a form of a page with its hidden fields; gives the answer."""
        text = self.get(page).text
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', text))
        return self.post(action, data={**hidden, **fields}, headers=SAME)


@pytest.fixture
def console(context: Context) -> FastAPI:
    return create_console(context)


@pytest.fixture
def signed_in(console: FastAPI, new_key: Callable[..., str]) -> Iterator[Callable[..., Browser]]:
    """`signed_in(auth.AUDIT, …)`: a browser in which somebody with these scopes signed in."""
    with ExitStack() as stack:

        def enter(*scopes: str, key_id: str = "operator") -> Browser:
            browser = stack.enter_context(
                Browser(console, base_url=BASE, follow_redirects=False, headers={"Accept": "text/html"})
            )
            answer = browser.post("/sign-in", data={"key": new_key(*scopes, key_id=key_id)}, headers=SAME)
            assert answer.status_code == 303, answer.text
            return browser

        yield enter
