"""Everything that the serving port answers is our own, and lets a browser fetch nothing; clients that send slowly, or
oddly, are ended or refused, and nobody else waits."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from service import __version__
from service.http.content_policy import POLICY
from tests.journey.conftest import Service, copy_of, starting
from tests.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]  # more than all its patience

N_HEADS, N_BODIES = 200, 40
FOREIGN = (
    "/docs.json", "/schema.json", "/static_content/index.css", "/static_content/swagger-ui.css", "/assets/index.js",
    "/docs", "/redoc", "/openapi.json", "/favicon.ico", "/nowhere", "/v1", "/metrics/", "//", "/v1x", "/v1/nowhere",
    "/a%0Ab",
)  # fmt: skip


@pytest.fixture(scope="module")
def service(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with starting(copy_of(tiny_home, tmp_path_factory.mktemp("port") / "home")) as start:
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
    assert (
        get(told["openapi"]).raise_for_status().json()["info"]
        == get("/v1/openapi.json").raise_for_status().json()["info"]
    )
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
    image = next(service.settings.data_folder.glob("**/*.png")).read_bytes()
    answer = service.client.post("/v1/predictions", content=image, headers={"Content-Type": "image/png"})
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


@contextmanager
def connections(service: Service, first: bytes, n: int) -> Iterator[list[socket.socket]]:
    """Connections that have sent the beginning of something."""
    with ExitStack() as stack:
        opened, place = [], ("127.0.0.1", service.settings.port)
        for _ in range(n):
            connection = stack.enter_context(socket.create_connection(place, timeout=PATIENCE_SECONDS))
            connection.sendall(first)
            opened.append(connection)
        yield opened


def trickle_until_ended(trickling: list[tuple[socket.socket, bytes]]) -> dict[socket.socket, bytes]:
    """Send one byte now and then on each until the service ends it; gives what each was told."""
    told: dict[socket.socket, bytes] = {connection: b"" for connection, _ in trickling}
    more, deadline = dict(trickling), time.monotonic() + PATIENCE_SECONDS
    with selectors.DefaultSelector() as selector:
        for connection in more:
            selector.register(connection, selectors.EVENT_READ)
        while more:
            assert time.monotonic() < deadline, f"{len(more)} slow connections were not ended."
            for key, _ in selector.select(timeout=0.5):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                try:
                    received = connection.recv(4096)
                except OSError:
                    received = b""
                told[connection] += received
                if not received:
                    selector.unregister(connection)
                    del more[connection]
            for connection, byte in more.items():
                try:
                    connection.sendall(byte)
                except OSError:
                    continue  # reading will tell
    return told


def test_slow_clients_are_ended_and_stop_nobody(service: Service) -> None:
    image = next(service.settings.data_folder.rglob("*.png")).read_bytes()
    body_head = (
        f"POST /v1/predictions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n"
        "Content-Type: image/png\r\nContent-Length: 100000\r\n\r\n"
    ).encode()
    with (
        connections(service, b"GET /v1/health/live HTTP/1.1\r\nX-Slow: ", N_HEADS) as heads,
        connections(service, body_head, N_BODIES) as bodies,
    ):
        for _ in range(20):
            answer = service.client.post("/v1/predictions", content=image, headers={"Content-Type": "image/png"})
            assert answer.status_code == 200
        told = trickle_until_ended([(one, b"a") for one in heads] + [(one, b"\x89") for one in bodies])
    assert all(told[one] == b"" for one in heads)
    assert all(told[one].startswith(b"HTTP/1.1 408") for one in bodies)


def test_odd_requests_are_refused(service: Service) -> None:
    """Forms and JSON that no client should send: each is an error of the client, none of the service."""
    file = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    forms = {
        "no end": b"--x\r\n" + file + b"abc",
        "no boundary": b"abc",
        "empty": b"",
        "no name": b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n",
        "a field, not a file": b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--x--\r\n',
        "two files": (b"--x\r\n" + file + b"abc\r\n") * 2 + b"--x--\r\n",
        "a thousand fields": b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n1\r\n' * 1000 + b"--x--\r\n",
        "a long header": b"--x\r\nX: " + b"a" * 50_000 + b"\r\n\r\nabc\r\n--x--\r\n",
        "a file name that is a path": b"--x\r\n" + file.replace(b"a.png", b"../../etc/passwd") + b"abc\r\n--x--\r\n",
        "another charset": b"--x\r\nContent-Type: text/plain; charset=no-such\r\n" + file + b"abc\r\n--x--\r\n",
        "bytes that are no text": b'--x\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\n\xff\r\n--x--\r\n',
    }
    kinds = ("multipart/form-data; boundary=x", "multipart/form-data", "multipart/form-data; boundary=" + "y" * 5000)
    for kind in kinds:
        for name, body in forms.items():
            answer = service.client.post("/v1/predictions", content=body, headers={"Content-Type": kind})
            assert 400 <= answer.status_code < 500, (name, kind, answer.status_code, answer.text)
    documents = {
        "deep": b"[" * 100_000,
        "deep and closed": b'{"user_ids": ' + b"[" * 900 + b"]" * 900 + b"}",
        "deep objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        "a long number": b'{"user_ids": [' + b"9" * 10_000 + b"]}",
        "not a number": b'{"user_ids": [NaN]}',
        "a lone surrogate": b'{"user_ids": ["\\ud800"]}',
        "a zero byte": b'{"user_ids": ["a\\u0000b"]}',
        "a key twice": b'{"user_ids": ["a"], "user_ids": [1]}',
        "a byte order mark": b'\xef\xbb\xbf{"user_ids": []}',
        "no text": b"\xff\xfe\x00",
    }
    for name, body in documents.items():
        answer = service.client.post("/v1/erasure-requests", content=body, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, (name, answer.status_code, answer.text)
        assert answer.headers["Content-Type"] == "application/problem+json", name
