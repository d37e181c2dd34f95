"""What a call says twice, or in an encoding that two readers would read in two ways, is refused whole."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from service.context import Context
from service.http.guard import MAX_BODY_BYTES
from service.keys.api_keys import WRITE
from service.store.engine import reading
from service.store.tables import ErasureRequest

Check = Callable[..., dict[str, Any]]
CANARY = "canary-5e1d"
ONE = json.dumps({"user_ids": [CANARY]}).encode()
JSON = ("Content-Type", "application/json")


@pytest.fixture
def authorization(client: TestClient) -> tuple[str, str]:
    return "Authorization", client.headers.pop("Authorization")


def is_nobody_filed(context: Context) -> bool:
    with reading(context.engine) as s:
        return s.exec(select(ErasureRequest)).first() is None


TWICE = {
    "user ids": f'{{"user_ids": ["{CANARY}"], "user_ids": ["other"]}}',
    "user ids, one name escaped": f'{{"user_ids": ["{CANARY}"], "user\\u005fids": ["other"]}}',
    "the same twice": f'{{"user_ids": ["{CANARY}"], "user_ids": ["{CANARY}"]}}',
    "legal hold": f'{{"user_ids": ["{CANARY}"], "legal_hold": true, "legal_hold": false}}',
    "deep": f'{{"user_ids": ["{CANARY}"], "callback_url": {{"a": [{{"b": 1, "b": 2}}]}}}}',
}


@pytest.mark.parametrize("body", TWICE.values(), ids=TWICE)
def test_a_name_that_stands_twice_in_an_object(
    client: TestClient, context: Context, assert_problem: Check, log_stream: io.StringIO, body: str
) -> None:
    problem = assert_problem(client.post("/erasure-requests", content=body, headers=[JSON]), 422)
    assert problem["errors"] == [{"pointer": "", "detail": "Expected each name once in an object, found one twice."}]
    assert is_nobody_filed(context)
    assert CANARY not in str(problem) + log_stream.getvalue()


def test_a_decision_s_body_too(client: TestClient, assert_problem: Check) -> None:
    place = client.post("/erasure-requests", json={"user_ids": ["s31"], "legal_hold": True}).headers["location"]
    twice = '{"reason": "Because.", "reason": "Or else."}'
    for decision in ("approve", "extend"):
        assert_problem(client.post(f"{place}/{decision}", content=twice, headers=[JSON]), 422)
    assert client.get(place).json()["state"] == "needs_attention"


HEADERS = {
    "two keys of idempotency": ([JSON, ("Idempotency-Key", "a"), ("Idempotency-Key", "b")], "header/idempotency-key"),
    "one key twice": ([JSON, ("Idempotency-Key", "a"), ("Idempotency-Key", "a")], "header/idempotency-key"),
    "two types": ([JSON, ("Content-Type", "text/plain")], "header/content-type"),
    "two lengths": ([JSON, ("Content-Length", "5"), ("Content-Length", str(len(ONE)))], "header/content-length"),
    "latin-1": ([("Content-Type", "application/json; charset=latin-1")], "header/content-type"),
    "two charsets": ([("Content-Type", "application/json; charset=utf-8; charset=latin-1")], "header/content-type"),
    "an unknown charset": ([("Content-Type", "application/json; charset=x-nothing")], "header/content-type"),
    "a compressed body": ([JSON, ("Content-Encoding", "gzip")], "header/content-encoding"),
}


@pytest.mark.parametrize(("headers", "place"), HEADERS.values(), ids=HEADERS)
def test_headers_that_can_be_read_in_two_ways(
    client: TestClient, context: Context, assert_problem: Check, headers: list[tuple[str, str]], place: str
) -> None:
    problem = assert_problem(client.post("/erasure-requests", content=ONE, headers=headers), 422)
    assert [each["pointer"] for each in problem["errors"]] == [place]
    assert is_nobody_filed(context)


def test_a_compressed_body(client: TestClient, context: Context, assert_problem: Check) -> None:
    headers = [JSON, ("Content-Encoding", "gzip")]
    assert_problem(client.post("/erasure-requests", content=gzip.compress(ONE), headers=headers), 422)
    assert is_nobody_filed(context)


@pytest.mark.parametrize("key", ["a,b", "a, b", "a,a", ","])
def test_keys_of_idempotency_that_were_joined(
    client: TestClient, context: Context, assert_problem: Check, key: str
) -> None:
    """So a proxy writes what came in two headers."""
    response = client.post("/erasure-requests", content=ONE, headers=[JSON, ("Idempotency-Key", key)])
    assert "without a comma" in assert_problem(response, 422)["detail"]
    assert is_nobody_filed(context)


@pytest.mark.parametrize("second", ["the same", "Bearer nonsense", "Basic YTpi", ""])
def test_two_keys_of_the_api(
    client: TestClient, context: Context, assert_problem: Check, authorization: tuple[str, str], second: str
) -> None:
    other = ("Authorization", authorization[1] if second == "the same" else second)
    for pair in ([authorization, other], [other, authorization]):
        for call in (
            client.post("/erasure-requests", content=ONE, headers=[JSON, *pair]),
            client.get("/erasure-requests", headers=pair),
        ):
            problem = assert_problem(call, 422)
            assert problem["errors"][0]["pointer"] == "header/authorization"
    assert is_nobody_filed(context)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("told", [True, False])
def test_other_encodings_than_plain_utf_8(
    client: TestClient, context: Context, assert_problem: Check, encoding: str, told: bool
) -> None:
    kind = f"application/json; charset={encoding}" if told else "application/json"
    content = ONE.decode().encode(encoding)
    assert_problem(client.post("/erasure-requests", content=content, headers=[("Content-Type", kind)]), 422)
    assert is_nobody_filed(context)


def test_bytes_that_are_not_utf_8(client: TestClient, context: Context, assert_problem: Check) -> None:
    for content in (b'{"user_ids": ["\xff"]}', b'{"user_ids": ["\xed\xa0\x80"]}', b'{"user_ids": ["\xc0\xaf"]}'):
        problem = assert_problem(client.post("/erasure-requests", content=content, headers=[JSON]), 422)
        assert "UTF-8" in problem["errors"][0]["detail"]
    assert is_nobody_filed(context)


@pytest.mark.parametrize(
    "kind", ["application/json", "APPLICATION/JSON;charset=UTF-8", 'application/json; charset="utf-8"']
)
def test_what_means_one_thing_is_taken(client: TestClient, kind: str) -> None:
    response = client.post("/erasure-requests", content=ONE, headers=[("Content-Type", kind)])
    assert response.status_code == 202, response.text


NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "1", "1.0", "true", "null", '{"a": NaN}', "[NaN]"]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("place", ['"user_ids": [{}]', '"user_ids": ["x"], "legal_hold": {{"a": {}}}'])
def test_what_is_no_text(client: TestClient, context: Context, assert_problem: Check, value: str, place: str) -> None:
    body = "{" + place.format(value) + "}"
    assert_problem(client.post("/erasure-requests", content=body, headers=[JSON]), 422)
    assert is_nobody_filed(context)


IDS = {
    "one escaped, half of a pair": '["\\ud800"]',
    "the halves the wrong way round": '["\\udc00\\ud800"]',
    "twice": '["a", "a"]',
    "twice, one escaped": '["a", "\\u0061"]',
    "twice but for normalisation": '["\\u00e9", "e\\u0301"]',
    "twice but for compatibility": '["\\u212b", "\\u00c5"]',
    "twice but for blanks": '["a", " a"]',
    "twice but for a hard blank": '["a", "a\\u00a0"]',
    "twice but for a blank of no width": '["a", "a\\u200b"]',
    "twice but for a soft hyphen": '["ab", "a\\u00adb"]',
    "twice but for a mark of byte order": '["a", "\\ufeffa"]',
    "twice but for a direction": '["a", "\\u202ea"]',
    "a text and its number": '["1", 1]',
    "with NUL": '["a\\u0000"]',
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_ids_that_are_one_person_s_to_some_reader(
    client: TestClient, context: Context, assert_problem: Check, ids: str
) -> None:
    body = f'{{"user_ids": {ids}}}'
    assert_problem(client.post("/erasure-requests", content=body, headers=[JSON]), 422)
    assert is_nobody_filed(context)


@pytest.mark.parametrize("more", ['"user_id": "b"', '"User_ids": ["b"]', '"user_ids ": ["b"]', '"\\ud800": 1', '"": 1'])
def test_a_field_that_nobody_knows(client: TestClient, context: Context, assert_problem: Check, more: str) -> None:
    body = f'{{"user_ids": ["{CANARY}"], {more}}}'
    assert_problem(client.post("/erasure-requests", content=body, headers=[JSON]), 422)
    assert is_nobody_filed(context)


def test_two_values_in_one_body(client: TestClient, context: Context, assert_problem: Check) -> None:
    assert_problem(client.post("/erasure-requests", content=ONE + b"\n" + ONE, headers=[JSON]), 422)
    assert is_nobody_filed(context)


@pytest.mark.parametrize("query", ["user_ids=b", "dry_run=1", "user_ids=b&user_ids=c", "legal_hold=true", "%ff=1"])
def test_a_parameter_that_nobody_knows(client: TestClient, context: Context, assert_problem: Check, query: str) -> None:
    """A call with `?dry_run=1` that was carried out would be a surprise."""
    problem = assert_problem(client.post(f"/erasure-requests?{query}", content=ONE, headers=[JSON]), 422)
    assert {each["pointer"] for each in problem["errors"]} == {"query"}
    assert is_nobody_filed(context)


@pytest.mark.parametrize(
    "path",
    [
        "/erasure-requests?limit=1&limit=2", "/erasure-requests?batch_id=a&batch_id=b", "/log/entries?start=0&start=1",
        "/erasure-requests?cursor=a&cursor=a", "/log/consistency?first_size=0&first_size=0",
        "/rollbacks?limit=1&limit=1",
    ],
)  # fmt: skip
def test_a_parameter_given_twice(client: TestClient, assert_problem: Check, path: str) -> None:
    problem = assert_problem(client.get(path), 422)
    name = path.rpartition("&")[2].partition("=")[0]
    assert problem["errors"] == [{"pointer": f"query/{name}", "detail": "Expected it once, found it 2 times."}]


def test_a_list_s_parameter_may_be_repeated(client: TestClient) -> None:
    assert client.get("/erasure-requests?state=queued&state=completed").status_code == 200


def test_who_has_no_key_is_not_told_what_else_is_wrong(
    client: TestClient, assert_problem: Check, authorization: tuple[str, str]
) -> None:
    assert authorization
    twice = '{"user_ids": ["a"], "user_ids": ["b"]}'
    assert_problem(client.post("/erasure-requests?a=1&a=2", content=twice, headers=[JSON]), 401)


def test_the_largest_body_is_read(client: TestClient, assert_problem: Check) -> None:
    padded = ONE[:-1] + b" " * (MAX_BODY_BYTES - len(ONE)) + ONE[-1:]
    assert client.post("/erasure-requests", content=padded, headers=[JSON]).status_code == 202
    assert_problem(client.post("/erasure-requests", content=padded + b" ", headers=[JSON]), 413)


def test_scopes_come_first(client: TestClient, new_key: Callable[..., str], assert_problem: Check) -> None:
    reader = {"Authorization": f"Bearer {new_key(WRITE, key_id='writer')}"}
    assert_problem(client.get("/log/entries?start=0&start=1", headers=reader), 403)
