from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
from datetime import datetime
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient

from service.http.request_log import RequestLog
from service.telemetry import logs

CANARY = "canary-7f3a9c"


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_carry_level_time_and_event(log_stream: io.StringIO) -> None:
    structlog.get_logger("a").warning("run.claimed", n_requests=3, user_id=CANARY)
    (line,) = lines(log_stream)
    assert (line["event"], line["level"], line["n_requests"]) == ("run.claimed", "warning", 3)
    assert line["timestamp"].endswith("Z")
    assert "user_id" not in line


@pytest.mark.parametrize("value", ["ä", "\udcff", b"\xff", float("inf"), {"a": [1, "ß"]}, object()])
def test_a_json_line_is_one_line_of_ascii_whatever_the_value(log_stream: io.StringIO, value: Any) -> None:
    structlog.get_logger("a").info("it.happened", value=value)
    assert log_stream.getvalue().isascii()
    (line,) = lines(log_stream)
    assert line["event"] == "it.happened"
    assert line["value"] == (value if isinstance(value, str | float | dict) else repr(value))


def test_console_lines_are_for_people(log_stream: io.StringIO) -> None:
    stream = io.StringIO()
    logs.set_up_logs("console", stream)
    structlog.get_logger("a").info("run.claimed", n_requests=3, user_ids=[CANARY])
    assert "run.claimed" in stream.getvalue()
    assert "n_requests=3" in stream.getvalue()
    assert CANARY not in stream.getvalue()


def test_errors_are_logged_without_their_messages(log_stream: io.StringIO) -> None:
    try:
        raise ValueError(CANARY)
    except ValueError:
        structlog.get_logger("a").exception("it.failed")
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    own, foreign = lines(log_stream)
    assert own["error"].startswith("ValueError at test_logs.py")
    assert foreign["error"].startswith("ValueError at test_logs.py")
    assert foreign["logger"] == "uvicorn.error"
    assert CANARY not in log_stream.getvalue()


class FullDisk(io.StringIO):
    """A stream that takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_line_that_cannot_be_written_breaks_nothing(app: FastAPI, log_stream: io.StringIO, log_format: Any) -> None:
    logs.set_up_logs(log_format, FullDisk())
    logging.getLogger("uvicorn.error").error("Exception in ASGI application")
    with TestClient(app) as client:
        assert client.get("/things/1").status_code == 200


@pytest.mark.parametrize("name", ["sqlalchemy.engine.Engine", "httpx", "httpcore.http11", "uvicorn.access"])
def test_talkative_libraries_are_not_heard(log_stream: io.StringIO, name: str) -> None:
    logging.getLogger(name).info("%r", CANARY)
    assert log_stream.getvalue() == ""


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    app.add_middleware(RequestLog, new_id=lambda: "made", clock=iter(range(100)).__next__)

    @app.get("/things/{thing_id}")
    def thing(thing_id: str) -> dict[str, str]:
        structlog.get_logger("inside").info("looked")
        return {"id": thing_id}

    @app.get("/breaks")
    def breaks() -> StreamingResponse:
        def parts() -> Any:
            yield b"x"
            raise ValueError(CANARY)

        return StreamingResponse(parts())

    return app


def test_one_line_a_request_with_the_template(app: FastAPI, log_stream: io.StringIO) -> None:
    with TestClient(app) as client:
        response = client.get(f"/things/{CANARY}?q={CANARY}")
    assert response.headers["x-request-id"] == "made"
    inside, line = lines(log_stream)
    assert CANARY not in log_stream.getvalue()
    assert inside["request_id"] == line["request_id"] == "made"
    assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None
    assert (line["event"], line["method"], line["route"], line["status"], line["duration_seconds"]) == (
        "request.answered", "GET", "/things/{thing_id}", 200, 1,
    )  # fmt: skip
    assert line["client_id"] is None


def test_of_requests_that_succeed_a_share_gets_a_line_and_of_others_each(log_stream: io.StringIO) -> None:
    app, told = FastAPI(), []
    app.add_middleware(RequestLog, new_id=lambda: "made", on_answer=lambda *_: told.append(1), share=0.25)

    @app.get("/fine")
    def fine() -> None: ...

    with TestClient(app) as client:
        for _ in range(8):
            client.get("/fine")
            client.get("/absent")
    assert [line["status"] for line in lines(log_stream)].count(200) == 2
    assert [line["status"] for line in lines(log_stream)].count(404) == 8
    assert len(told) == 16  # metrics count all of them


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_3", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ("", False), ("a\tb", False)],
)
def test_a_fit_request_id_is_kept(app: FastAPI, given: str, kept: bool) -> None:
    with TestClient(app) as client:
        response = client.get("/things/1", headers={"X-Request-ID": given})
    assert response.headers["x-request-id"] == (given if kept else "made")


def test_an_unknown_path_is_not_logged(app: FastAPI, log_stream: io.StringIO) -> None:
    with TestClient(app) as client:
        client.get(f"/{CANARY}")
    assert [each["route"] for each in lines(log_stream)] == ["unmatched"]
    assert CANARY not in log_stream.getvalue()


def test_an_answer_that_breaks_off_is_no_secret(app: FastAPI, log_stream: io.StringIO) -> None:
    with TestClient(app) as client, pytest.raises(ConnectionAbortedError) as caught:
        client.get("/breaks")
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    crashed = [each for each in lines(log_stream) if each["event"] == "request.crashed"]
    assert "ValueError" in crashed[0]["error"]
    assert CANARY not in log_stream.getvalue()


def test_lines_of_one_turn_of_a_loop_are_one_write_and_none_is_lost() -> None:
    class Stream(io.StringIO):
        n_writes = 0

        def write(self, text: str) -> int:
            self.n_writes += 1
            return super().write(text)

    stream = Stream()
    logs.set_up_logs("json", stream)
    log = structlog.get_logger()

    async def talk() -> None:
        for number in range(5):
            log.info("first.turn", number=number)
        assert stream.n_writes == 0
        await asyncio.sleep(0)
        assert stream.n_writes == 1
        log.info("last.turn")

    asyncio.run(talk())
    log.info("after.the.loop")
    asyncio.run(talk_once(log))
    assert [line["event"] for line in lines(stream)] == [*["first.turn"] * 5, "last.turn", "after.the.loop", "again"]


async def talk_once(log: Any) -> None:
    log.info("again")
