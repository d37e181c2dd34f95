"""SIGTERM to the real service in the middle of its work: what it took is answered, then it is gone."""

from __future__ import annotations

import io
import json
import select
import signal
import socket
import threading
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest
from PIL import Image
from sqlmodel import select as query

from service.context import Context
from service.keys import api_keys
from service.launch import Processes, free_ports
from service.models import deployment
from service.models.barrier import look
from service.settings import Settings
from service.store.engine import reading, session
from service.store.tables import ServingWorker
from tests.service.versions import add_version
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]  # more than all its patience

N_CALLS, N_IMAGES = 8, 32


def request_of(key: str) -> bytes:
    """A call whose images are small files and take long to decode."""
    stream = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(stream, "PNG")
    files = [("image", (str(i), stream.getvalue(), "image/png")) for i in range(N_IMAGES)]
    made = httpx.Request(
        "POST", "http://x/v1/predictions/batch", files=files, headers={"Authorization": f"Bearer {key}"}
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in made.headers.items())
    return f"POST /v1/predictions/batch HTTP/1.1\r\n{head}\r\n".encode() + made.read()


def test_sigterm_lets_every_call_that_was_taken_be_answered(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", port=free_ports(1)[0], max_queue=N_CALLS * N_IMAGES, log_format="json")
    context = Context.open(settings)
    with session(context.engine) as s:
        _, key = api_keys.create_key(s, name="t", scopes=[api_keys.PREDICT], now=context.now(), key_id="t")
        s.commit()
    deployment.activate_first(context, add_version(context, 1))
    with Processes(settings) as processes, ExitStack() as stack:
        processes.start_serving()
        processes.wait_until(
            lambda: sum(row.acknowledged_generation == 1 for row in look(context).alive()) == settings.api_workers,
            "the serving processes", 120,
        )  # fmt: skip
        serving = processes.serving
        assert serving is not None
        request, place = request_of(key), ("127.0.0.1", settings.port)
        calls = [stack.enter_context(socket.create_connection(place, timeout=PATIENCE_SECONDS)) for _ in range(N_CALLS)]
        for call in calls:
            call.sendall(request)
        answered, _, _ = select.select(calls, [], [], PATIENCE_SECONDS)
        assert 0 < len(answered) < N_CALLS  # the others are inside by now
        serving.send_signal(signal.SIGTERM)
        for call in calls:
            answer = HTTPResponse(call)
            answer.begin()
            assert answer.status == 200
            assert all(each["label"] for each in json.loads(answer.read())["predictions"])
        serving.wait(PATIENCE_SECONDS)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{settings.port}/v1/health/live", timeout=PATIENCE_SECONDS)
    with reading(context.engine) as s:
        assert s.exec(query(ServingWorker)).all() == []  # each took its row away
    context.engine.dispose()


def test_sigterm_under_load_closes_no_connection_without_an_answer(tmp_path: Path) -> None:
    """Clients that keep their connections and repeat at once: each is answered, then cannot connect any more."""
    settings = Settings(home=tmp_path / "home", port=free_ports(1)[0], log_format="json")
    context = Context.open(settings)
    with session(context.engine) as s:
        _, key = api_keys.create_key(s, name="t", scopes=[api_keys.PREDICT], now=context.now(), key_id="t")
        s.commit()
    deployment.activate_first(context, add_version(context, 1))
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "PNG")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/png"}
    n_answered, has_ended = [0] * 16, threading.Event()
    unanswered: list[str] = []

    def repeat(number: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{settings.port}/v1", timeout=PATIENCE_SECONDS) as client:
            while not has_ended.is_set():
                try:
                    answer = client.post("/predictions", content=stream.getvalue(), headers=headers)
                except httpx.ConnectError:  # refused
                    return
                except httpx.TransportError as error:
                    unanswered.append(type(error).__name__)
                    return
                assert answer.status_code == 200
                n_answered[number] += 1

    clients = [threading.Thread(target=repeat, args=(number,)) for number in range(16)]
    with Processes(settings) as processes:
        processes.start_serving()
        processes.wait_until(
            lambda: sum(row.acknowledged_generation == 1 for row in look(context).alive()) == settings.api_workers,
            "the serving processes", 120,
        )  # fmt: skip
        serving = processes.serving
        assert serving is not None
        try:
            for client in clients:
                client.start()
            wait_until(lambda: min(n_answered) >= 5, "every client to be answered a few times")
            serving.send_signal(signal.SIGTERM)
            serving.wait(PATIENCE_SECONDS)
        finally:
            has_ended.set()
            for client in clients:
                client.join(PATIENCE_SECONDS)
    assert unanswered == []
    context.engine.dispose()
