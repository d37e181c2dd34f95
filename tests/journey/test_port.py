"""Everything that the serving port answers is our own, and lets a browser fetch nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service import __version__
from service.http.content_policy import POLICY
from service.settings import Settings
from tests.journey.conftest import Service, copy_of, starting
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.journey

FOREIGN = (
    "/docs.json", "/schema.json", "/static_content/index.css", "/static_content/swagger-ui.css", "/assets/index.js",
    "/docs", "/redoc", "/openapi.json", "/favicon.ico", "/nowhere", "/v1", "/metrics/", "//", "/v1x", "/v1/nowhere",
    "/a%0Ab",
)  # fmt: skip


@pytest.fixture(scope="module")
def service(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings: Settings = copy_of(tiny_home, tmp_path_factory.mktemp("port") / "home")
    with starting(settings.model_copy(update={"api_workers": 1})) as start:
        yield start()


@pytest.fixture
def get(service: Service) -> Callable[[str], httpx.Response]:
    """Answers to somebody without a key."""

    def get(path: str, method: str = "GET") -> httpx.Response:
        return httpx.request(
            method, str(service.client.base_url).rstrip("/") + path, timeout=PATIENCE_SECONDS, follow_redirects=False
        )

    return get


@pytest.mark.parametrize("path", FOREIGN)
def test_what_is_not_ours_is_not_there(get: Callable[[str], httpx.Response], path: str) -> None:
    answer = get(path)
    assert answer.status_code == 404, answer.text[:200]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-security-policy"] == POLICY
    told = answer.json()
    assert told["type"] == "urn:expunge:problem:not-found"
    assert told["request_id"] == answer.headers["x-request-id"]
    assert told["errors"] == []


def test_the_port_names_the_service_and_links_its_description(get: Callable[[str], httpx.Response]) -> None:
    answer = get("/")
    assert answer.status_code == 200
    told = answer.json()
    assert told["service"] == "Expunge"
    assert told["version"] == __version__
    assert get(told["openapi"]).json()["info"] == get("/v1/openapi.json").json()["info"]
    assert answer.headers["link"] == f'<{told["openapi"]}>; rel="service-desc"'
    assert answer.headers["content-security-policy"] == POLICY


def test_another_method_is_refused_in_the_one_shape(get: Callable[..., httpx.Response]) -> None:
    answer = get("/", "POST")
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/v1/health/live", "/v1/health/ready", "/livez", "/healthz", "/readyz", "/metrics"])
def test_what_probes_and_scrapes_ask_for_stays(get: Callable[[str], httpx.Response], path: str) -> None:
    answer = get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == POLICY


def test_predictions_and_refusals_carry_the_policy_too(service: Service, get: Callable[..., httpx.Response]) -> None:
    picture = next(service.settings.data_folder.glob("**/*.png")).read_bytes()
    answer = service.client.post("/v1/predictions", content=picture, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200
    assert answer.headers.get_list("content-security-policy") == [POLICY]
    answer = get("/v1/predictions", "POST")
    assert answer.status_code == 401
    assert answer.headers.get_list("content-security-policy") == [POLICY]


def test_what_is_no_http_is_refused_in_the_one_shape(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.settings.port), PATIENCE_SECONDS) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 400 ")
    assert f"content-security-policy: {POLICY}" in head
    assert "content-type: application/problem+json" in head
    assert json.loads(body)["status"] == 400
