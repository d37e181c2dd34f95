"""A console over the service's test database, and visitors of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.console.listener import create_console
from service.context import Context
from service.erasure import completion
from service.keys import api_keys
from service.requests.runs import advance
from service.store.engine import session
from service.store.tables import CertificateRecord
from tests.service import tiny
from tests.service.conftest import Clock

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


@dataclass
class Erased:
    """A tiny service that erased somebody after a failed attempt, and a script that may see everything."""

    context: Context
    client: TestClient
    failed: CertificateRecord
    passed: CertificateRecord
    run_id: str

    def verification(self, record: CertificateRecord) -> str:
        answer = self.client.get(f"/certificates/{record.id}/verification")
        assert answer.status_code == 200
        return answer.text


@pytest.fixture(scope="session")
def erased_template(
    tiny_template: Path, tmp_path_factory: pytest.TempPathFactory, contexts: Callable[..., Any]
) -> tuple[Path, str]:
    """A tiny home in which somebody was erased, and the run's number; tests work on copies."""
    home = tmp_path_factory.mktemp("erased") / "home"
    shutil.copytree(tiny_template, home)
    with contexts(tiny.settings_of(home), Clock()) as context:
        run_id = erase(context, tiny.people(context)[0])
    tiny.forget_packs(context.settings)
    return home, run_id


@pytest.fixture
def erased(
    erased_template: tuple[Path, str], tmp_path: Path, clock: Clock, contexts: Callable[..., Any]
) -> Iterator[Erased]:
    template, run_id = erased_template
    shutil.copytree(template, tmp_path / "erased")
    with contexts(tiny.settings_of(tmp_path / "erased"), clock) as context:
        failed, passed = sorted(tiny.certificates(context), key=lambda record: record.log_index)
        yield Erased(context, script(context), failed, passed, run_id)


def erase(context: Context, user_id: str) -> str:
    """Erase somebody after a failed attempt, with all who wait; gives the run's number."""
    run_id = tiny.plan_run(context, user_id)
    assert not tiny.try_step(context, run_id, tiny.FINETUNE)
    assert tiny.try_step(context, run_id, tiny.RETRAIN)
    advance(context, run_id, "deploying")
    tiny.deploying.deploy(tiny.workspace(context, run_id))
    advance(context, run_id, "purging")
    completion.purge(tiny.workspace(context, run_id))
    completion.complete(tiny.workspace(context, run_id))
    return run_id


def script(context: Context, *scopes: str, key_id: str = "auditor") -> TestClient:
    """A script at the console, by default one that may see everything."""
    with session(context.engine) as s:
        _, key = api_keys.create_key(
            s, name=key_id, scopes=scopes or [api_keys.AUDIT], now=context.now(), key_id=key_id
        )
        s.commit()
    client = TestClient(create_console(context))
    client.auth = (key_id, key)
    return client
