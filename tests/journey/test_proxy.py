"""A real nginx before both listeners, under a path: everything that a caller follows leads through it again."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from service.launch import free_ports
from service.settings import Settings
from tests.journey.conftest import Service, copy_of, starting
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = [pytest.mark.journey, pytest.mark.nginx, pytest.mark.timeout(900)]  # more than all its patience

API, CONSOLE = "/faces", "/operators/faces"

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"


def locations(service: Service, *, take_off: bool) -> str:
    """The block of the page, for this service, whose callers are said to come by https."""
    block = re.search(r"^```nginx\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert block is not None
    text = block[1].replace("$scheme", "https")
    for port, ours in ((3000, service.settings.port), (3001, service.settings.console_port)):
        assert f"127.0.0.1:{port}/;" in text
        text = text.replace(f"127.0.0.1:{port}/;", f"127.0.0.1:{ours}{'/' if take_off else ''};")
    return text


@pytest.fixture(scope="module")
def nginx() -> str:
    path = shutil.which("nginx")
    if path is None:
        pytest.skip("Needs nginx: run apt-get install nginx-light.")
    return path


@pytest.fixture(scope="module")
def service(nginx: str, tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings: Settings = copy_of(tiny_home, tmp_path_factory.mktemp("proxied") / "home")
    changes = {
        "path_prefix": API, "console_path_prefix": CONSOLE, "trusted_proxies": "127.0.0.1",
        "hold_seconds": 3600.0,
    }  # fmt: skip
    with starting(settings.model_copy(update=changes)) as start:
        service = start()
        console = f"http://127.0.0.1:{settings.console_port}/health"
        service.processes.wait_until(lambda: _answers(console), "the console to listen", PATIENCE_SECONDS)
        yield service


@pytest.fixture(scope="module", params=["takes the path off", "leaves the path"])
def url(
    request: pytest.FixtureRequest, nginx: str, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where nginx listens."""
    (port,), folder = free_ports(1), tmp_path_factory.mktemp("nginx")
    block = locations(service, take_off=request.param == "takes the path off")
    folders = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {folders} server {{ listen 127.0.0.1:{port};\n{block} }} }}\n"
    )
    process = subprocess.Popen([nginx, "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"])
    try:
        wait_until(lambda: process.poll() is not None or _answers(f"http://127.0.0.1:{port}"), "nginx to listen")
        assert process.poll() is None
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _answers(url: str) -> bool:
    try:
        return bool(httpx.get(url, timeout=PATIENCE_SECONDS).status_code)
    except httpx.TransportError:
        return False


@pytest.fixture
def caller(url: str, service: Service) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {service.key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_SECONDS) as client:
        yield client


def test_the_api_leads_through_the_proxy(caller: httpx.Client, service: Service) -> None:
    name = caller.get(f"{API}/").raise_for_status().json()
    assert name["openapi"] == f"{API}/v1/openapi.json"
    description = caller.get(name["openapi"]).raise_for_status().json()
    assert [server["url"] for server in description["servers"]] == [f"{API}/v1"]
    image = next(service.settings.data_folder.glob("**/*.png")).read_bytes()
    answer = caller.post(f"{API}/v1/predictions", content=image, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    for people in (["nobody"], ["nobody", "no-one"]):
        filed = caller.post(f"{API}/v1/erasure-requests", json={"user_ids": people})
        assert filed.status_code == 202, filed.text
        assert filed.headers["location"].startswith(f"{API}/v1/erasure-requests")
        assert caller.get(filed.headers["location"]).status_code == 200
    assert caller.get(f"{API}/readyz").status_code == 200
    assert caller.get(f"{API}/metrics").status_code == 200
    assert caller.get(f"{API}/v1/nowhere").status_code == 404


def test_probes_need_no_proxy(service: Service) -> None:
    for port, path in ((service.settings.port, "/v1/health/ready"), (service.settings.console_port, "/health")):
        assert httpx.get(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_SECONDS).status_code == 200
    place = service.client.post("/v1/erasure-requests", json={"user_ids": ["somebody"]}).headers["location"]
    assert place.startswith(f"{API}/v1/")  # what a caller is given holds where callers are


@pytest.fixture
def browser(url: str) -> Iterator[httpx.Client]:
    headers = {"Accept": "text/html", "Origin": url}
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_SECONDS) as client:
        yield client


def test_the_console_stays_under_its_path(browser: httpx.Client, service: Service) -> None:
    service.file("a-person")
    asked = browser.get(f"{CONSOLE}/runs?x=1")
    assert (asked.status_code, asked.headers["location"]) == (303, f"{CONSOLE}/sign-in?next=/runs%3Fx%3D1")
    entered = browser.post(f"{CONSOLE}/sign-in", data={"key": service.key, "target": "/runs"})
    assert (entered.status_code, entered.headers["location"]) == (303, f"{CONSOLE}/runs")
    cookie = entered.headers["set-cookie"]
    assert f"Path={CONSOLE};" in f"{cookie};"
    assert "Secure" in cookie  # the proxy is trusted, and says that callers come by https
    browser.cookies.clear()
    browser.headers["Cookie"] = cookie.partition(";")[0]

    waiting, seen = [f"{CONSOLE}/"], set[str]()
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        page = browser.get(place)
        assert page.status_code == 200, (place, page.text[:300])
        if not page.headers["content-type"].startswith("text/html"):
            continue
        for kind, found in re.findall(r'\b(href|src|action)="([^"]+)"', page.text):
            target = urljoin(place, found.replace("&amp;", "&"))
            if found.startswith(("#", "http", "data:")):
                continue
            assert target.startswith(f"{CONSOLE}/"), (place, found)
            if kind != "action" and "lang" not in target:
                waiting.append(target.partition("#")[0])
    assert {f"{CONSOLE}/runs", f"{CONSOLE}/models", f"{CONSOLE}/static/console.css", f"{CONSOLE}/register"} <= seen
    home = browser.get(f"{CONSOLE}/file").text
    assert f'href="{CONSOLE}/file" aria-current="page"' in home
    token = re.search(r'name="token" value="([^"]+)"', home)
    assert token is not None
    left = browser.post(f"{CONSOLE}/sign-out", data={"token": token[1]})
    assert left.headers["location"] == f"{CONSOLE}/sign-in"
    assert f"Path={CONSOLE};" in f"{left.headers['set-cookie']};"
