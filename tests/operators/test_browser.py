"""The console in a real browser before the real processes: a request filed, followed, verified; another cancelled.

`make pictures` runs these tests with `PICTURES=docs/images`, and they write the documents' screenshots on their way.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from audit.proof.certificate import verify
from service.context import Context
from service.keys import api_keys
from service.launch import Processes, free_ports
from service.settings import Settings
from service.store.engine import session
from service.store.tables import ErasureRequest
from service.training.production import train_production
from tests.journey.conftest import TINY_POLICY, TINY_RECIPE, tell_young_from_old, wait_serving
from unlearning.faces import read_metadata
from unlearning.faces.sources import synthetic

pytestmark = [pytest.mark.browser, pytest.mark.journey, pytest.mark.timeout(1200)]  # longer than all its patience

SECONDS = 120_000  # patience with a run, in Playwright's milliseconds
SCHEMES = ("light", "dark")
IMPACTS = {"serious", "critical"}
expect.set_options(timeout=SECONDS)  # a busy machine shows a page late; what is wrong stays wrong


@dataclass
class Visit:
    """A browser session and what it did: hosts asked, errors shown in its developer console."""

    browsing: BrowserContext
    url: str
    hosts: set[str | None] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def page(self) -> Page:
        page = self.browsing.new_page()
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        return page

    def guard(self, route: Route) -> None:
        """Every request of the browser comes by here; one to another host is noted, and goes nowhere."""
        host = urlsplit(route.request.url).hostname
        self.hosts.add(host)
        if host == "127.0.0.1":
            route.continue_()
        else:
            route.abort()


@dataclass(frozen=True)
class Service:
    """The running processes, the console's address and the operator's key."""

    settings: Settings
    url: str
    key: str
    people: tuple[str, ...]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    (home / "recipe.json").write_text(json.dumps(TINY_RECIPE))
    (home / "policy.json").write_text(json.dumps(TINY_POLICY))
    ports = free_ports(2)
    settings = Settings(
        home=home, recipe=str(home / "recipe.json"), policy=str(home / "policy.json"), port=ports[0], api_workers=1,
        console_port=ports[1], hold_seconds=3600, jobs=1, log_format="json",
    )  # fmt: skip
    synthetic.write_folder(settings.data_folder, n_subjects=24, images_per_subject=6, size=(16, 16), seed=1)
    tell_young_from_old(settings.data_folder / "metadata.csv")
    context = Context.open(settings)
    train_production(context, seed=0)
    with session(context.engine) as s:
        _, key = api_keys.create_key(
            s, name="Privacy office", scopes=api_keys.SCOPES, now=context.now(), key_id="privacy-office"
        )
        s.commit()
    context.engine.dispose()
    people = sorted({row.user_id for row in read_metadata(settings.data_folder) if row.split == "train"})
    with Processes(settings) as processes:
        processes.start_serving()
        processes.start_worker()
        wait_serving(processes, settings)
        wait_for_console(processes)
        yield Service(settings, f"http://127.0.0.1:{settings.console_port}", key, tuple(people))


def wait_for_console(processes: Processes) -> None:
    """Until the worker is ready; then let its session run like any other, or a busy machine would never show a page."""
    log = processes.logs / "worker.log"
    processes.wait_until(lambda: "worker.ready" in log.read_text(), "the worker", 120)
    with suppress(OSError, AttributeError):
        Path(f"/proc/{processes.worker.pid}/autogroup").write_text("0")  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def browser(program: Callable[[str, str], str]) -> Iterator[Browser]:
    path = program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, service: Service) -> Iterator[Visit]:
    """A session that nobody signed in to; at its end no request has left the machine, and nothing went wrong in it."""
    browsing = browser.new_context(viewport={"width": 1280, "height": 900}, timezone_id="Europe/Berlin")
    browsing.set_default_timeout(SECONDS)
    browsing.add_init_script(path=str(files("axe_playwright_python") / "axe.min.js"))
    visit = Visit(browsing, service.url)
    browsing.route("**/*", visit.guard)
    yield visit
    browsing.close()
    assert visit.hosts == {"127.0.0.1"}
    assert visit.errors == []


@pytest.fixture
def signed_in(visit: Visit, service: Service) -> Page:
    page = visit.page()
    page.goto(visit.url)
    page.get_by_label("API key").fill(service.key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Requests")
    return page


def picture(page: Page, name: str, *, height: int = 900, scheme: str = "light") -> None:
    """A screenshot for the documents, where they are asked for: a palette of 200 colours keeps it small."""
    if folder := os.environ.get("PICTURES"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": 1280, "height": height})
        shot = Image.open(BytesIO(page.screenshot())).convert("RGB").quantize(200, dither=Image.Dither.NONE)
        shot.save(Path(folder) / f"{name}.png", optimize=True)
        page.emulate_media(color_scheme="light")


def violations(page: Page) -> list[str]:
    """Serious and critical findings of axe-core, in both colour schemes."""
    found = []
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        results = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        found += [
            f"{scheme}: {each['id']}: {node['html'][:120]} {node['failureSummary'][-160:]}"
            for each in results["violations"]
            if each["impact"] in IMPACTS
            for node in each["nodes"]
        ]
    page.emulate_media(color_scheme="light")
    return found


def file(page: Page, url: str, person: str, *, legal_hold: bool = False) -> str:
    """File one request in the form; gives its page's address."""
    page.goto(f"{url}/file")
    page.get_by_label("User ids").fill(person)
    page.get_by_label("Ground").select_option("consent_withdrawn")
    if legal_hold:
        page.get_by_label("Legal hold").check()
    page.get_by_role("button", name="File", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="Filed.")).to_be_visible()
    page.get_by_role("link", name="its page").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Request")
    return page.url


def end_hold(settings: Settings, request: str) -> None:
    """Let the hour pass in which a request can be cancelled, and no other's: what a visitor does is no race then."""
    context = Context.open(settings)
    with session(context.engine) as s:
        row = s.get_one(ErasureRequest, request.rpartition("/")[2])
        row.hold_until = context.now()
        s.add(row)
        s.commit()
    context.engine.dispose()


def test_a_wrong_key_gets_nowhere(visit: Visit) -> None:
    page = visit.page()
    page.goto(f"{visit.url}/models")
    page.get_by_label("API key").fill("exp_wrong_key")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("unknown, expired or revoked")
    assert violations(page) == []
    page.goto(visit.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    visit.errors = [each for each in visit.errors if "401" not in each]  # the browser's own line about the answer


def test_a_request_is_filed_followed_and_verified_and_another_cancelled(
    signed_in: Page, visit: Visit, service: Service
) -> None:
    page, url = signed_in, service.url
    held = file(page, url, service.people[5], legal_hold=True)
    expect(page.locator("#state .pill")).to_have_text("needs attention")
    request = file(page, url, service.people[2])
    page.evaluate("() => { window.unbroken = true }")

    other = visit.page()
    file(other, url, service.people[7])
    other.get_by_text("Cancel", exact=True).click()
    other.get_by_role("button", name="Cancel this request").click()
    expect(other.get_by_role("status").filter(has_text="Cancelled.")).to_be_visible()
    expect(other.locator("#state .pill")).to_have_text("cancelled")
    end_hold(service.settings, request)

    # What happens is shown as it happens, on the page that was open all the time.
    expect(page.locator("#state .doing")).to_contain_text(
        re.compile(r"reference models\s*\d+ of 20", re.I), timeout=SECONDS
    )
    expect(page.get_by_role("progressbar", name="Progress")).to_be_visible()
    other.goto(url)
    expect(other.locator("#under-way progress")).to_be_visible()
    if "PICTURES" in os.environ:
        expect(other.locator("#under-way .doing")).to_contain_text(re.compile(r"([4-9]|1\d) of 20"), timeout=SECONDS)
    picture(other, "console-requests", height=820)
    expect(page.locator("#state .doing")).to_contain_text("finetune", timeout=SECONDS)
    expect(page.locator("#attempts .rung").first).to_contain_text("being tried")
    found = violations(page)
    expect(page.locator("#attempts .FAILED").first).to_contain_text("at most 1%", timeout=SECONDS)
    expect(page.locator("#state .pill")).to_have_text("completed", timeout=SECONDS)
    expect(page.locator("#attempts .rung.PASSED")).to_contain_text("Exact retraining")
    expect(page.locator("#timeline li").last).to_contain_text("Completed")
    assert page.evaluate("() => window.unbroken"), "the page was reloaded"
    # In the reader's time zone, which is Berlin's, with UTC beside it; also what came while the page was open.
    expect(page.locator("#timeline li").last.locator("time")).to_have_text(re.compile(r"^.+, .+:.+ \(.+ UTC\)$"))
    assert service.people[2] not in page.content()
    assert found == []

    page.get_by_role("link", name="Audit report of step 1").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Audit of run")
    expect(page.locator(".verdict").first).to_have_css("border-left-style", "solid")  # its own style may apply
    page.goto(request)
    picture(page, "console", height=960)
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download").click()
    content = json.loads(Path(downloading.value.path()).read_text())
    assert verify(content, public_key=Context.open(service.settings).keyring.public_key).erased
    page.get_by_role("link", name="Verify").click()
    expect(page.locator(".verdict")).to_contain_text("Genuine, and the erasure is certified")
    expect(page.locator("td.failed")).to_have_count(0)
    expect(page.get_by_role("row", name=re.compile("^Weights"))).to_contain_text("holds")
    picture(page, "console-verification", scheme="dark")

    # The sheet for the person, in their language and their time.
    page.goto(request)
    page.get_by_role("link", name="For the person").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Certificate of erasure")
    page.get_by_role("link", name="Deutsch").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Bescheinigung über die Löschung")
    expect(page.locator("time").first).to_have_text(re.compile(r"\d. \w+ \d{4} um .* MES?Z \(.* UTC\)"))
    assert service.people[2] not in page.content()

    # Somebody decides about the one that waits.
    page.goto(held)
    page.get_by_text("Reject", exact=True).first.click()
    page.get_by_label("Legal ground").select_option("legal_claims")
    page.get_by_label("Explanation").fill("Evidence in an open case.")
    page.get_by_role("button", name="Reject").click()
    expect(page.locator("#state .pill")).to_have_text("rejected")

    # Every page, both schemes, wide and narrow.
    with_attempts = page.locator("a", has_text="Audit report")
    addresses = [
        "/",
        "/?state=all",
        "/file",
        "/register",
        "/runs",
        "/models",
        "/banks",
        "/methods",
        urlsplit(request).path,
        urlsplit(request).path.removesuffix("-0001").replace("/requests/", "/receipts/"),
        f"{urlsplit(request).path}/certificate?lang=fr",
        "/nowhere",
    ]
    page.goto(f"{url}/runs")
    addresses.append(page.locator("tbody a").first.get_attribute("href") or "")
    page.goto(request)
    addresses.append(page.get_by_role("link", name="Verify").get_attribute("href") or "")
    addresses.append(with_attempts.first.get_attribute("href") or "")
    for address in addresses:
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(url + address)
        assert violations(page) == [], address
        page.set_viewport_size({"width": 390, "height": 844})
        width = page.evaluate("() => document.documentElement.scrollWidth")
        assert width <= 390, f"{address} is {width} pixels wide on a screen of 390"
    visit.errors = [each for each in visit.errors if "404" not in each]  # the browser's own line about /nowhere


def test_no_page_of_either_port_asks_another_machine(signed_in: Page, visit: Visit, service: Service) -> None:
    """The end of `visit` looks at the hosts; what a page would load is named here, with the page."""
    serving = f"http://127.0.0.1:{service.settings.port}"
    asked: list[str] = []
    signed_in.on("request", lambda request: asked.append(request.url))
    pages = [
        serving + path for path in ("/", "/docs.json", "/static_content/index.css", "/nowhere", "/v1/openapi.json")
    ]
    pages += [
        visit.url + path for path in ("/", "/file", "/register", "/runs", "/models", "/banks", "/methods", "/nowhere")
    ]
    for url in pages:
        asked.clear()
        signed_in.goto(url, wait_until="networkidle")
        assert {urlsplit(each).hostname for each in asked} == {"127.0.0.1"}, url
    visit.errors = [each for each in visit.errors if "404" not in each]  # the browser's own lines about /nowhere


def test_the_keyboard_reaches_everything(signed_in: Page, visit: Visit) -> None:
    page = signed_in
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to content")
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()  # the browser moves the focus with its next frame
    page.goto(visit.url)
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        reached.append(focused.evaluate("(e) => e.labels?.[0]?.innerText || e.innerText || e.ariaLabel"))
        assert focused.evaluate("(e) => getComputedStyle(e).outlineStyle") == "solid", reached[-1]
        if reached[-1] == "Show":
            break
    for name in ("Models", "Sign out", "File a request", "Request's number", "State", "Deadline", "Show"):
        assert name in reached
    page.get_by_role("button", name="Sign out").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_a_worker_that_is_gone_is_said_and_forgotten(signed_in: Page, visit: Visit) -> None:
    page = signed_in
    page.goto(f"{visit.url}/models")  # asked for every second
    visit.browsing.set_offline(True)
    expect(page.locator("#lost")).to_contain_text("does not answer")
    visit.browsing.set_offline(False)
    expect(page.locator("#lost")).to_be_hidden()
    visit.errors.clear()  # the browser's own lines about requests that failed
