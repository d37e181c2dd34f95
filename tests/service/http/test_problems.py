from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel, Field
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from service import errors
from service.errors import ExpungeError
from service.http.problems import MOST_ERRORS, add_problem_handlers, problem
from service.http.request_log import RequestLog

CANARY = "canary-7f3a9c"
EVERY_ERROR = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, ExpungeError) and each is not ExpungeError
]


class Body(BaseModel, extra="forbid"):
    names: list[str] = Field(max_length=2)
    size: int = Field(ge=0)
    inner: dict[str, int] = {}


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    add_problem_handlers(app)
    app.add_middleware(RequestLog, new_id=lambda: "r-1")

    @app.post("/body")
    def body(body: Body) -> None: ...

    @app.get("/query")
    def query(number: int = Query(ge=1)) -> None: ...

    @app.get("/http/{status}")
    def http(status: int) -> None:
        raise HTTPException(status, "A sentence.", headers={"X-Mine": "1"} if status == 418 else None)

    @app.get("/database")
    def database() -> None:
        raise OperationalError("INSERT", {"user_id": CANARY}, Exception("locked"))

    @app.get("/crash")
    def crash() -> None:
        raise KeyError(CANARY)

    @app.get("/expected/{name}")
    def expected(name: str) -> None:
        raise getattr(errors, name)("A sentence.")

    @app.get("/extra")
    def extra() -> None:
        raise errors.InvalidInputError("A sentence.", expected=["JPEG"], status=200, title="Fine")

    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("kind", EVERY_ERROR, ids=lambda kind: kind.__name__)
def test_every_expected_error(
    client: TestClient, assert_problem: Callable[..., dict[str, Any]], kind: type[ExpungeError]
) -> None:
    body = assert_problem(client.get(f"/expected/{kind.__name__}"), kind.status)
    assert body["title"] == (kind.title if kind.status != 500 else "Internal error")
    assert (body["detail"] == "A sentence.") == (kind.status != 500)  # what was not meant for callers is kept


@pytest.mark.parametrize("status", [400, 404, 405, 413, 415, 418])
def test_http_errors(client: TestClient, assert_problem: Callable[..., Any], status: int) -> None:
    response = client.get(f"/http/{status}")
    assert_problem(response, status)
    assert ("x-mine" in response.headers) == (status == 418)


def test_unknown_routes_and_methods(client: TestClient, assert_problem: Callable[..., Any]) -> None:
    for path in ("/nothing", f"/{CANARY}", "/query/more"):
        assert CANARY not in str(assert_problem(client.get(path), 404))
    response = client.put("/query")
    assert_problem(response, 405)
    assert response.headers["allow"] == "GET"


def test_a_database_that_does_not_answer(client: TestClient, assert_problem: Callable[..., Any]) -> None:
    response = client.get("/database")
    assert CANARY not in str(assert_problem(response, 503))
    assert response.headers["retry-after"] == "2"


def test_what_nobody_foresaw(client: TestClient, assert_problem: Callable[..., Any], log_stream: Any) -> None:
    body = assert_problem(client.get("/crash"), 500)
    assert CANARY not in str(body)
    lines = log_stream.getvalue()
    assert CANARY not in lines
    assert "KeyError at test_problems.py" in lines
    assert '"status":500' in lines


def test_extra_members_never_replace_the_standard_ones(client: TestClient, assert_problem: Callable[..., Any]) -> None:
    body = assert_problem(client.get("/extra"), 422)
    assert (body["expected"], body["title"]) == (["JPEG"], "Invalid input")


@pytest.mark.parametrize(
    ("sent", "pointers"),
    [
        ({"names": [CANARY], "size": CANARY}, {"/size"}),
        ({"names": [CANARY] * 3, "size": 1}, {"/names"}),
        ({"names": [1, CANARY], "size": -1}, {"/names/0", "/size"}),
        ({"names": [], "size": 1, CANARY: 1}, {""}),
        ({}, {"/names", "/size"}),
        ([CANARY], {""}),
        (CANARY, {""}),
        (None, {""}),
    ],
)
def test_places_are_named_and_values_are_not(
    client: TestClient, assert_problem: Callable[..., Any], sent: Any, pointers: set[str]
) -> None:
    body = assert_problem(client.post("/body", json=sent), 422)
    assert {each["pointer"] for each in body["errors"]} == pointers
    assert CANARY not in str(body)


@pytest.mark.parametrize("content", [b"{", b"", b'{"names": "' + CANARY.encode(), b"\xff", b"nul", b"[" * 200_000])
def test_bodies_that_are_not_json(client: TestClient, assert_problem: Callable[..., Any], content: bytes) -> None:
    response = client.post("/body", content=content, headers={"content-type": "application/json"})
    assert CANARY not in str(assert_problem(response, response.status_code))
    assert response.status_code in (400, 422)


def test_query_parameters_are_named(client: TestClient, assert_problem: Callable[..., Any]) -> None:
    body = assert_problem(client.get("/query", params={"number": CANARY}), 422)
    assert [each["pointer"] for each in body["errors"]] == ["query/number"]
    assert CANARY not in str(body)


def test_a_long_list_of_errors_is_cut(client: TestClient, assert_problem: Callable[..., Any]) -> None:
    sent = {"names": [], "size": 1, "inner": dict.fromkeys("abcdefghijklmnopqrstuvwxyz")}
    body = assert_problem(client.post("/body", json=sent), 422)
    assert len(body["errors"]) == MOST_ERRORS
    assert "26 place(s)" in body["detail"]


def test_a_problem_has_no_member_twice() -> None:
    response = problem(404, "Not found", "A sentence.", request_id="r", extra={"detail": "x", "more": 1})
    assert response.media_type == "application/problem+json"
    assert b'"detail":"A sentence."' in response.body
