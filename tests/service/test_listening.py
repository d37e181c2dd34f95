"""What the settings of hosts mean, with real sockets."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.console.listener import Listener
from service.errors import StartupError
from service.launch import free_ports, serve_command, stop
from service.listening import Place, PortTakenError, address_to_listen_on, listen, url_of
from service.settings import Settings
from tests.waiting import PATIENCE_SECONDS, wait_until

PLACES: tuple[Place, ...] = ("", "console_")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


HOSTS = [
    ("127.0.0.1", {"127.0.0.1"}),
    ("localhost", {"127.0.0.1"}),
    ("0.0.0.0", {"127.0.0.1"}),  # noqa: S104
    pytest.param("::1", {"::1"}, marks=pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")),
    pytest.param("::", {"127.0.0.1", "::1"}, marks=pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")),
]


def answering(port: int) -> set[str]:
    """Addresses of this machine's loopback where somebody takes connections."""
    found = set()
    for address in ("127.0.0.1", "::1"):
        try:
            socket.create_connection((address, port), timeout=PATIENCE_SECONDS).close()
        except OSError:
            continue
        found.add(address)
    return found


@contextmanager
def serving(settings: Settings) -> Iterator[None]:
    """The parent of serving processes: it takes the port, whether or not they start."""
    command, environment = serve_command(settings)
    log = settings.home / "serving.log"
    with log.open("ab") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        return bool(answering(settings.port))

    try:
        wait_until(listens, "the port to be taken")
        yield
        wait_until(psutil.Process(process.pid).children, "a serving process to be started")  # which is then ended, too
    finally:
        stop(process, 0)


@pytest.mark.parametrize(("host", "expected"), HOSTS)
def test_a_host_means_the_same_to_both_listeners(
    contexts: Callable[..., Any], settings: Settings, clock: Any, host: str, expected: set[str]
) -> None:
    ports = free_ports(2)
    places = {"host": host, "port": ports[0], "console_host": host, "console_port": ports[1]}
    cheap = {"api_workers": 1, "backend": "openvino"}  # whose process, which is ended while it starts, loads no torch
    elsewhere = settings.model_copy(update=places | cheap)
    with contexts(elsewhere, clock) as context, Listener(context):
        assert answering(ports[1]) == expected
        assert httpx.get(f"{url_of(elsewhere, 'console_')}/health", timeout=PATIENCE_SECONDS).json() == {"status": "ok"}
    with serving(elsewhere):
        assert answering(ports[0]) == expected


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("host", ["no-such-host.invalid", "[::1]", "10.0.0.0/8", "a" * 70])
def test_what_is_no_host_is_refused_by_the_variables_name(tmp_path: Path, place: Place, host: str) -> None:
    settings = Settings(home=tmp_path, **{f"{place}host": host})
    with pytest.raises(StartupError, match=f"EXPUNGE_{place.upper()}HOST"):
        address_to_listen_on(settings, place)


@pytest.mark.parametrize("place", PLACES)
def test_an_address_of_another_machine_is_refused_by_the_variables_name(tmp_path: Path, place: Place) -> None:
    settings = Settings(home=tmp_path, **{f"{place}host": "192.0.2.1"})
    with pytest.raises(StartupError, match=f"192.0.2.1.*EXPUNGE_{place.upper()}HOST"):
        listen(settings, place)


@pytest.mark.parametrize("place", PLACES)
def test_a_port_that_is_taken_is_told_with_the_variables_name(tmp_path: Path, place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = Settings(home=tmp_path, **{f"{place}port": other.getsockname()[1]})
        with pytest.raises(PortTakenError, match=f"EXPUNGE_{place.upper()}PORT"):
            listen(settings, place)


def test_a_worker_whose_console_finds_its_port_taken_goes_on(
    contexts: Callable[..., Any], settings: Settings, clock: Any, log_stream: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        elsewhere = settings.model_copy(update={"console_port": other.getsockname()[1]})
        with contexts(elsewhere, clock) as context, Listener(context):
            pass
    assert "EXPUNGE_CONSOLE_PORT" in log_stream.getvalue()


def test_a_printed_address_leads_there(tmp_path: Path) -> None:
    for host, expected in (
        ("127.0.0.1", "http://127.0.0.1:3000"),
        ("0.0.0.0", "http://127.0.0.1:3000"),  # noqa: S104
        ("::", "http://127.0.0.1:3000"),
        ("::1", "http://[::1]:3000"),
        ("localhost", "http://localhost:3000"),
    ):
        assert url_of(Settings(home=tmp_path, host=host)) == expected
