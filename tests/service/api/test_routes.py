from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlmodel import select
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from service.api.routes import create_api
from service.context import Context
from service.errors import TryLaterError
from service.http.guard import MAX_BODY_BYTES
from service.keys import api_keys
from service.keys.api_keys import ADMIN, AUDIT, PREDICT, READ, SCOPES, WRITE
from service.requests import intake, states
from service.requests.schemas import Filed, Problem, RequestDetail, RequestPage
from service.store.engine import reading, session
from service.store.tables import ErasureRequest
from tests.waiting import at_once

Check = Callable[..., dict[str, Any]]
CANARY = "canary-7f3a9c"

DECIDE = {"reason": "Because."}
REJECT = {"legal_reason": "other", "explanation": "Because."}
Route = tuple[str, str, dict[str, Any] | None, set[str]]
ROUTES: list[Route] = [
    ("POST", "/erasure-requests", {"user_ids": ["s31"]}, {WRITE}),
    ("GET", "/erasure-requests", None, {READ, AUDIT, ADMIN}),
    ("GET", "/erasure-requests/{request_id}", None, {READ, AUDIT, ADMIN}),
    ("DELETE", "/erasure-requests/{request_id}", None, {WRITE}),
    ("GET", "/erasure-requests/{request_id}/certificate", None, {READ, AUDIT, ADMIN}),
    ("POST", "/erasure-requests/{request_id}/extend", DECIDE, {ADMIN}),
    ("POST", "/erasure-requests/{request_id}/approve", DECIDE, {ADMIN}),
    ("POST", "/erasure-requests/{request_id}/reject", REJECT, {ADMIN}),
    ("POST", "/erasure-batches/{batch_id}/approve", DECIDE, {ADMIN}),
    ("POST", "/erasure-batches/{batch_id}/reject", REJECT, {ADMIN}),
    ("GET", "/certificates/{certificate_id}", None, {READ, AUDIT, ADMIN}),
    ("GET", "/log/checkpoint", None, {READ, AUDIT, ADMIN}),
    ("GET", "/log/inclusion?index=0", None, {READ, AUDIT, ADMIN}),
    ("GET", "/log/consistency?first_size=0", None, {READ, AUDIT, ADMIN}),
    ("GET", "/log/entries", None, {AUDIT, ADMIN}),
    ("GET", "/models", None, {PREDICT, AUDIT, ADMIN}),
    ("POST", "/models/{digest}/rollback", DECIDE, {ADMIN}),
    ("GET", "/rollbacks", None, {AUDIT, ADMIN}),
    ("GET", "/rollbacks/{rollback_id}", None, {AUDIT, ADMIN}),
]
OPEN_TO_ALL = [("GET", "/keys")]
NAMES = [f"{method} {path}" for method, path, _, _ in ROUTES]


def call(client: TestClient, method: str, path: str, body: Any, token: str | None) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    options = {"json": body} if body is not None else {}
    return client.request(method, re.sub(r"\{\w+\}", "nothing", path), headers=headers, **options)


@pytest.fixture
def bare(app: FastAPI) -> Iterator[TestClient]:
    """Client without a key."""
    with TestClient(app) as bare:
        yield bare


def test_the_table_names_every_route(app: FastAPI) -> None:
    document = app.openapi()
    documented = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert documented == {(method, path.partition("?")[0]) for method, path, *_ in ROUTES} | set(OPEN_TO_ALL)


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_each_route_with_each_scope(
    bare: TestClient, new_key: Callable[..., str], assert_problem: Check, route: Route
) -> None:
    method, path, body, scopes = route
    for scope in SCOPES:
        response = call(bare, method, path, body, new_key(scope, key_id=scope.replace(":", "-")))
        if scope in scopes:
            assert response.status_code not in (401, 403, 405), response.text
            assert response.status_code < 500
        else:
            problem = assert_problem(response, 403)
            assert any(allowed in problem["detail"] for allowed in scopes)


@pytest.fixture
def keys(context: Context, clock: Any, new_key: Callable[..., str]) -> tuple[str, list[str | None]]:
    """A good key that holds every scope, and those that are none, spoilt, expired or revoked."""
    expired = new_key(*SCOPES, key_id="expired", expires_at=clock.at + timedelta(seconds=5))
    revoked = new_key(*SCOPES, key_id="revoked")
    good = new_key(*SCOPES, key_id="good")
    clock.advance(seconds=5)
    with session(context.engine) as s:
        api_keys.revoke_key(s, "revoked", now=clock())
        s.commit()
    return good, [None, "", "nonsense", expired, revoked, good[:-1], good.replace("good", "evil")]


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_each_route_without_a_valid_key(
    bare: TestClient, context: Context, keys: tuple[str, list[str | None]], assert_problem: Check, route: Route
) -> None:
    method, path, body, _ = route
    good, refused = keys
    for token in refused:
        for sent in (body, {"not": "fit"}) if body is not None else (None,):
            assert_problem(call(bare, method, path, sent, token), 401)
    assert bare.request(method, path, params={"api_key": good}).status_code == 401
    assert bare.request(method, path, headers={"X-API-Key": good}).status_code == 401
    with reading(context.engine) as s:
        assert s.exec(select(ErasureRequest)).first() is None
    assert call(bare, method, path, body, good).status_code not in (401, 403)


def test_public_keys_need_no_key(bare: TestClient) -> None:
    assert bare.get("/keys").json()["keys"][0]["algorithm"] == "Ed25519"


def test_filing_answers_after_the_commit_with_the_place(client: TestClient, context: Context) -> None:
    response = client.post("/erasure-requests", json={"user_ids": [CANARY]})
    assert response.status_code == 202
    assert response.headers["cache-control"] == "no-store"
    filed = Filed.model_validate(response.json())
    assert response.headers["location"] == f"/erasure-requests/{filed.requests[0].id}"
    detail = RequestDetail.model_validate(client.get(response.headers["location"]).json())
    assert (detail.id, detail.state, detail.batch_id) == (filed.requests[0].id, "queued", filed.batch_id)
    with reading(context.engine) as s:
        assert s.exec(select(ErasureRequest)).one().user_id == CANARY


def test_a_batch_s_place_is_the_list_of_its_requests(client: TestClient) -> None:
    client.post("/erasure-requests", json={"user_ids": ["other"]})
    response = client.post("/erasure-requests", json={"user_ids": ["a", "b", "c"]})
    page = RequestPage.model_validate(client.get(response.headers["location"]).json())
    assert [each.id for each in page.requests] == [each["id"] for each in response.json()["requests"]]


@pytest.mark.parametrize("prefix", ["/v1", "/a/b"])
def test_mounted_the_place_has_the_prefix(app: FastAPI, new_key: Callable[..., str], prefix: str) -> None:
    outer = TestClient(Starlette(routes=[Mount(prefix, app)]))
    outer.headers["Authorization"] = f"Bearer {new_key(*SCOPES)}"
    one = outer.post(f"{prefix}/erasure-requests", json={"user_ids": ["s31"]})
    assert one.headers["location"] == f"{prefix}/erasure-requests/{one.json()['requests'][0]['id']}"
    many = outer.post(f"{prefix}/erasure-requests", json={"user_ids": ["a", "b"]})
    assert many.headers["location"] == f"{prefix}/erasure-requests?batch_id={many.json()['batch_id']}"
    for response in (one, many):
        assert outer.get(response.headers["location"]).status_code == 200
    assert outer.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": prefix}]


def test_mounted_unknown_routes_are_problems(app: FastAPI, assert_problem: Check) -> None:
    outer = TestClient(Starlette(routes=[Mount("/v1", app)]))
    assert_problem(outer.get("/v1/nothing"), 404)
    assert_problem(outer.put("/v1/models"), 405)


def test_the_life_of_a_request_over_http(client: TestClient, clock: Any) -> None:
    place = client.post("/erasure-requests", json={"user_ids": ["s31"], "legal_hold": True}).headers["location"]
    assert client.get(place).json()["attention_reason"] == "legal_hold"
    assert client.post(f"{place}/approve", json=DECIDE).json()["state"] == "queued"
    assert client.post(f"{place}/extend", json=DECIDE).json()["due_at"] == "2026-04-30T12:00:00Z"
    assert client.get(place).json()["cancellable"] is True
    cancelled = client.delete(place)
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert [each["to_state"] for each in cancelled.json()["events"]] == [
        "needs_attention", "queued", "queued", "cancelled",
    ]  # fmt: skip


def test_errors_of_the_states_are_conflicts(client: TestClient, clock: Any, assert_problem: Check) -> None:
    place = client.post("/erasure-requests", json={"user_ids": ["s31"]}).headers["location"]
    assert_problem(client.post(f"{place}/approve", json=DECIDE), 409)
    assert_problem(client.get(f"{place}/certificate"), 404)
    clock.advance(days=1)
    assert_problem(client.delete(place), 409)
    clock.advance(days=60)
    assert_problem(client.post(f"{place}/extend", json=DECIDE), 409)
    client.post(f"{place}/reject", json=REJECT)
    assert_problem(client.post(f"{place}/reject", json=REJECT), 409)


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/", "/erasure-requests/", f"/erasure-requests/{CANARY}", "/%00", "/v1/keys",
        "/erasure-requests/%00", "/certificates/%F0%9F%99%82", "/erasure-requests/a%2Fb",
    ],
)  # fmt: skip
def test_what_is_not_there(client: TestClient, assert_problem: Check, path: str) -> None:
    assert CANARY not in str(assert_problem(client.get(path), 404))


def test_other_methods(client: TestClient, assert_problem: Check) -> None:
    for method, path in (("PUT", "/models"), ("PATCH", "/erasure-requests/x"), ("DELETE", "/erasure-requests")):
        response = client.request(method, path)
        assert_problem(response, 405)
        assert response.headers["allow"]
    assert client.request("PATCH", "/erasure-requests/x").headers["allow"] == "DELETE, GET"


def test_bodies_that_are_too_large(client: TestClient, assert_problem: Check) -> None:
    headers = {"content-type": "application/json"}
    for content in (b" " * (MAX_BODY_BYTES + 1), (b" " * 100_000 for _ in range(30))):
        assert_problem(client.post("/erasure-requests", content=content, headers=headers), 413)
    largest = {"user_ids": [f"{n:04d}" + "\u0001"[:0] + "\U0001f642" * 252 for n in range(1000)]}
    assert client.post("/erasure-requests", json=largest).status_code == 202


BAD_BODIES: list[Any] = [
    None,
    [],
    "x",
    5,
    {},
    {"user_ids": []},
    {"user_ids": "s31"},
    {"user_ids": [CANARY, CANARY]},
    {"user_ids": [CANARY, 5]},
    {"user_ids": [f"{CANARY}\n"]},
    {"user_ids": [CANARY + "x" * 256]},
    {"user_ids": [f"{CANARY}{n}" for n in range(1001)]},
    {"user_ids": {CANARY: CANARY}},
    {"user_ids": [CANARY], CANARY: CANARY},
    {"user_ids": [CANARY], "ground": CANARY},
    {"user_ids": [CANARY], "legal_hold": CANARY},
    {"user_ids": [CANARY], "requested_at": CANARY},
    {"user_ids": [CANARY], "case_references": [CANARY]},
    {"user_ids": [CANARY], "case_references": [f"DSR-{CANARY}-1"]},
    {"user_ids": [CANARY], "case_references": [CANARY, CANARY]},
    {"user_ids": [CANARY], "case_references": [f"{CANARY}\n"]},
    {"user_ids": [CANARY], "case_references": CANARY},
    {"user_ids": [CANARY], "received_at": CANARY},
    {"user_ids": [CANARY], "received_at": "2027-01-01T00:00:00Z"},
    {"user_ids": [CANARY], "requested_at": "2027-01-01T00:00:00Z"},
    {"user_ids": [CANARY], "callback_url": f"https://u:{CANARY}@a.example"},
    {"user_ids": [CANARY], "callback_url": f"https://a.example/{CANARY}"},
]


def test_bad_input_is_refused_whole_and_never_repeated(
    client: TestClient, context: Context, assert_problem: Check, log_stream: io.StringIO
) -> None:
    for body in BAD_BODIES:
        assert CANARY not in str(assert_problem(client.post("/erasure-requests", json=body), 422))
    for content in (f'{{"user_ids": ["{CANARY}"', f'["{CANARY}"]', f"user_ids={CANARY}", "[" * 100_000):
        response = client.post("/erasure-requests", content=content, headers={"content-type": "application/json"})
        assert response.status_code in (400, 422)
        assert CANARY not in str(assert_problem(response, response.status_code))
    form = client.post("/erasure-requests", data={"user_ids": CANARY})
    assert CANARY not in str(assert_problem(form, 422))
    with reading(context.engine) as s:
        assert s.exec(select(ErasureRequest)).first() is None
    assert CANARY not in log_stream.getvalue()


def test_a_person_s_id_is_in_no_answer_and_no_log_line(
    client: TestClient, context: Context, assert_problem: Check, log_stream: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen = []
    filed = client.post("/erasure-requests", json={"user_ids": [CANARY]}, headers={"Idempotency-Key": "k"})
    place = filed.headers["location"]
    seen += [filed, client.get(place), client.get("/erasure-requests"), client.post(f"{place}/extend", json=DECIDE)]
    seen += [
        client.post(f"{place}/extend", json={"reason": f"for {CANARY}"}),
        client.get(f"/erasure-requests/{CANARY}"),
    ]
    seen += [client.get("/erasure-requests", params={"state": CANARY, "cursor": CANARY, CANARY: CANARY})]
    seen += [client.post("/erasure-requests", json={"user_ids": [CANARY, "x"]}, headers={"Idempotency-Key": "k"})]

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError(f"about {CANARY}")

    monkeypatch.setattr(intake, "file_requests", crash)
    crashed = client.post("/erasure-requests", json={"user_ids": [CANARY]})
    assert_problem(crashed, 500)
    for response in [*seen, crashed, client.delete(place)]:
        assert CANARY not in response.text
        assert CANARY not in str(response.headers)
    assert "RuntimeError at test_routes.py" in log_stream.getvalue()
    assert CANARY not in log_stream.getvalue()


def test_a_case_reference_stands_beside_its_number_and_in_no_log_line(
    client: TestClient, log_stream: io.StringIO
) -> None:
    body = {"user_ids": ["s31", "s4", "s9"], "case_references": ["DSR A/1", None, "DSR A/3"]}
    filed = client.post("/erasure-requests", json=body)
    assert [receipt["case_reference"] for receipt in filed.json()["requests"]] == body["case_references"]
    listed = {each["id"]: each["case_reference"] for each in client.get("/erasure-requests").json()["requests"]}
    assert listed == {receipt["id"]: receipt["case_reference"] for receipt in filed.json()["requests"]}
    last = filed.json()["requests"][2]["id"]
    assert client.get(f"/erasure-requests/{last}").json()["case_reference"] == "DSR A/3"
    assert client.delete(f"/erasure-requests/{last}").json()["case_reference"] == "DSR A/3"  # it stays after the end
    assert last in log_stream.getvalue()
    assert "DSR" not in log_stream.getvalue()
    assert "DSR" not in str(filed.headers)


def test_the_quota_says_when_to_come_back(context: Context, new_key: Callable[..., str], assert_problem: Check) -> None:
    strict = replace(context, settings=context.settings.model_copy(update={"most_open_requests": 1}))
    with TestClient(create_api(strict, n_subjects=lambda: 40)) as client:
        client.headers["Authorization"] = f"Bearer {new_key(WRITE)}"
        response = client.post("/erasure-requests", json={"user_ids": ["a", "b"]})
    assert_problem(response, 429)
    assert response.headers["retry-after"] == "60"


def test_try_later_says_when(client: TestClient, assert_problem: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def later(*_: object, **__: object) -> None:
        raise TryLaterError("Not now.", retry_after_seconds=7)

    monkeypatch.setattr(intake, "file_requests", later)
    response = client.post("/erasure-requests", json={"user_ids": ["a"]})
    assert_problem(response, 503)
    assert response.headers["retry-after"] == "7"


def test_the_same_key_gives_the_same_bytes(client: TestClient, clock: Any, assert_problem: Check) -> None:
    headers = {"Idempotency-Key": "call-1"}
    first = client.post("/erasure-requests", json={"user_ids": ["s31"]}, headers=headers)
    clock.advance(days=2)
    again = client.post("/erasure-requests", json={"user_ids": ["s31"]}, headers=headers)
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert_problem(client.post("/erasure-requests", json={"user_ids": ["s4"]}, headers=headers), 422)
    assert_problem(client.post("/erasure-requests", json={"user_ids": ["s4"]}, headers={"Idempotency-Key": "a b"}), 422)


def test_the_same_key_at_once_gives_one_answer(client: TestClient, context: Context) -> None:
    answers = []

    def file() -> None:
        answers.append(
            client.post("/erasure-requests", json={"user_ids": ["a", "b"]}, headers={"Idempotency-Key": "k"}).content
        )

    at_once(*[file] * 5)
    assert len(set(answers)) == 1
    with reading(context.engine) as s:
        assert len(s.exec(select(ErasureRequest)).all()) == 2


def test_a_client_sees_only_its_own_over_http(
    client: TestClient, new_key: Callable[..., str], assert_problem: Check
) -> None:
    place = client.post("/erasure-requests", json={"user_ids": ["s31"]}).headers["location"]
    stranger = {"Authorization": f"Bearer {new_key(READ, WRITE, key_id='stranger')}"}
    auditor = {"Authorization": f"Bearer {new_key(AUDIT, key_id='auditor')}"}
    for method in ("GET", "DELETE"):
        assert_problem(client.request(method, place, headers=stranger), 404)
    assert_problem(client.get(f"{place}/certificate", headers=stranger), 404)
    assert client.get("/erasure-requests", headers=stranger).json() == {"requests": [], "next_cursor": None}
    assert client.get(place, headers=auditor).json()["commitment_salt"] is None
    assert len(client.get("/erasure-requests", headers=auditor).json()["requests"]) == 1


def test_an_unknown_person_is_answered_like_a_known_one(client: TestClient, context: Context, clock: Any) -> None:
    views = []
    for user_id, outcome in (("s31", "erased"), ("nobody", "no_data_held")):
        place = client.post("/erasure-requests", json={"user_ids": [user_id]}).headers["location"]
        with session(context.engine) as s:
            request = s.get(ErasureRequest, place.rpartition("/")[2])
            assert request is not None
            for step in ("unlearning", "purging"):
                states.move(s, request, step, now=clock())
            states.move(s, request, "completed", now=clock(), outcome=outcome, certificate_id="c")
            s.commit()
        views.append(client.get(place).json())
    known, unknown = views
    assert known.keys() == unknown.keys()
    own = {"id", "batch_id", "commitment", "commitment_salt", "outcome"}
    assert {name: known[name] for name in known.keys() - own} == {name: unknown[name] for name in known.keys() - own}


class TestOpenApi:
    """The document is well-formed, complete and true."""

    @pytest.fixture
    def document(self, client: TestClient) -> dict[str, Any]:
        document: dict[str, Any] = client.get("/openapi.json").json()
        return document

    def operations(self, document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for path, item in document["paths"].items():
            for method, operation in item.items():
                yield method.upper(), path, operation

    def test_every_reference_resolves(self, document: dict[str, Any]) -> None:
        def walk(value: Any) -> Iterator[str]:
            if isinstance(value, dict):
                if isinstance(value.get("$ref"), str):
                    yield value["$ref"]
                for item in value.values():
                    yield from walk(item)
            elif isinstance(value, list):
                for item in value:
                    yield from walk(item)

        references = set(walk(document))
        assert references
        for reference in references:
            target: Any = document
            for part in reference.removeprefix("#/").split("/"):
                target = target[part]

    def test_operations_are_named_once_described_and_guarded(self, document: dict[str, Any]) -> None:
        assert document["openapi"].startswith("3.1")
        assert document["components"]["securitySchemes"] == {
            "ApiKey": {
                "type": "http", "scheme": "bearer", "bearerFormat": "exp_<id>_<random>",
                "description": "An API key of the service.",
            }
        }  # fmt: skip
        names = [operation["operationId"] for _, _, operation in self.operations(document)]
        assert len(set(names)) == len(names)
        for method, path, operation in self.operations(document):
            assert operation["description"]
            assert operation["tags"]
            assert ("security" in operation) == ((method, path) not in OPEN_TO_ALL), path
            declared = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
            assert declared == set(re.findall(r"\{(\w+)\}", path))
            assert "user" not in path

    def test_every_error_is_documented_as_a_problem(self, document: dict[str, Any]) -> None:
        for method, path, operation in self.operations(document):
            responses = operation["responses"]
            failing = {status: each for status, each in responses.items() if status[0] in "45"}
            if (method, path) not in OPEN_TO_ALL:
                assert {"401", "403", "422", "500", "503"} <= failing.keys()
            if "requestBody" in operation:
                assert {"400", "413"} <= failing.keys()
            if "{" in path:
                assert "404" in failing
            for each in failing.values():
                content = {"schema": {"$ref": "#/components/schemas/Problem"}}
                assert each["content"] == {"application/problem+json": content}
                assert each["description"]
            for status in {"429", "503"} & failing.keys():
                assert "Retry-After" in failing[status]["headers"]
        assert "HTTPValidationError" not in document["components"]["schemas"]
        assert set(document["components"]["schemas"]["Problem"]["required"]) == set(Problem.model_fields)

    def test_the_place_is_documented(self, document: dict[str, Any]) -> None:
        accepted = document["paths"]["/erasure-requests"]["post"]["responses"]["202"]
        assert "Location" in accepted["headers"]

    def test_links_lead_to_parameters_of_operations(self, document: dict[str, Any]) -> None:
        parameters = {
            operation["operationId"]: {each["name"] for each in operation.get("parameters", [])}
            for _, _, operation in self.operations(document)
        }
        links = [
            link
            for _, _, operation in self.operations(document)
            for response in operation["responses"].values()
            for link in response.get("links", {}).values()
        ]
        assert len(links) > 15
        for link in links:
            assert link["parameters"].keys() <= parameters[link["operationId"]]

    def test_every_field_of_an_answer_is_required(self, document: dict[str, Any]) -> None:
        calls = {"Filing", "Extension", "Rejection", "Decision"}
        for name, schema in document["components"]["schemas"].items():
            if schema["type"] == "object" and name not in calls:
                assert set(schema["required"]) == set(schema["properties"]), name
            if name in calls:
                assert schema["additionalProperties"] is False
                assert schema["examples"]

    def test_examples_are_accepted(self, document: dict[str, Any], client: TestClient, assert_problem: Check) -> None:
        schemas = document["components"]["schemas"]
        for example in schemas["Filing"]["examples"]:
            response = client.post("/erasure-requests", json=example)
            assert response.status_code == 202, response.text
        place = response.headers["location"]
        assert client.post(f"{place}/extend", json=schemas["Extension"]["examples"][0]).status_code == 200
        assert_problem(client.post(f"{place}/approve", json=schemas["Decision"]["examples"][0]), 409)
        assert client.post(f"{place}/reject", json=schemas["Rejection"]["examples"][0]).status_code == 200

    def test_it_stays_the_same_when_asked_again(self, client: TestClient) -> None:
        assert client.get("/openapi.json").content == client.get("/openapi.json").content
