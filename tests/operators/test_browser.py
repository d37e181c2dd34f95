"""The console in a real browser: with a key, by keyboard, without the internet."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn
from playwright.sync_api import Browser, Error, Page, sync_playwright

from service import auth, intake
from service.auth import Client
from service.console.listener import create_console
from service.context import Context
from service.db import session
from service.processes import free_ports
from service.schemas import Filing
from service.settings import Settings

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context.open(Settings(home=tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def key(context: Context) -> str:
    with session(context.engine) as s:
        _, token = auth.create_key(s, name="operator", scopes=[auth.AUDIT], now=context.now(), key_id="operator")
        s.commit()
    return token


@pytest.fixture(scope="module")
def url(context: Context) -> Iterator[str]:
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(create_console(context), port=port, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser(program: Callable[[str, str], str]) -> Iterator[Browser]:
    path = program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, key: str) -> Iterator[Page]:
    """A page of a browser that knows the key; hosts it asked are in `page.hosts`."""
    browsing = browser.new_context(http_credentials={"username": "operator", "password": key})
    page = browsing.new_page()
    hosts: set[str | None] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    yield page
    browsing.close()
    assert hosts - {None} <= {"127.0.0.1"}


def test_a_request_is_found_and_opened_by_keyboard(page: Page, url: str, context: Context, tmp_path: Path) -> None:
    client, filing = Client("c", "c", frozenset(auth.SCOPES)), Filing(user_ids=["canary-7d"])
    filed = intake.file_requests(context, client, filing, n_subjects=lambda: 9, most_open=9)
    request_id = filed.requests[0].id
    page.goto(url)
    assert page.title() == "Requests · Expunge"
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to content"
    page.locator(f'a[href="/requests/{request_id}"]').focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"{url}/requests/{request_id}")
    assert page.locator("h1").inner_text() == f"Request {request_id}"
    assert page.locator("ol.timeline li").all_inner_texts()[0].startswith("queued")
    assert "canary-7d" not in page.content()
    assert page.screenshot(path=tmp_path / "request.png")


def test_a_wrong_key_sees_nothing(browser: Browser, url: str) -> None:
    browsing = browser.new_context(http_credentials={"username": "operator", "password": "exp_wrong_key"})
    page = browsing.new_page()
    try:
        response = page.goto(url)
        assert response is not None
        assert response.status == 401
        assert "Requests" not in page.title()
    except Error as error:
        assert "ERR_INVALID_AUTH_CREDENTIALS" in str(error)  # noqa: PT017 (what a browser may do instead)
    finally:
        browsing.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(page: Page, url: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(f"{url}/models")
    colours = page.evaluate(
        "() => [...document.querySelectorAll('h1, p, th, a')].map(e => getComputedStyle(e).color)"
        ".concat([getComputedStyle(document.body).backgroundColor])"
    )
    *words, ground = [_luminance(colour) for colour in colours]
    for word in words:
        lighter, darker = max(word, ground), min(word, ground)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG 2.1, 1.4.3


def _luminance(colour: str) -> float:
    """Relative luminance of `rgb(…)`, WCAG 2.1."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
