"""Predictions over HTTP in one process: the answer, its errors, its protection."""

from __future__ import annotations

import io
import json
import threading
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from service import auth
from service.deployment import activate_first, commit, stage
from service.serving import ServingProcess
from tests.service.versions import CLASSES, add_version, picture, pixels_of, reference_probabilities

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

JPEG, PNG = {"content-type": "image/jpeg"}, {"content-type": "image/png"}


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"max_image_bytes": 50_000, "max_image_pixels": 40_000, "api_workers": 1})


@pytest.fixture
def digest(context):
    found = add_version(context, 1)
    activate_first(context, found)
    return found


@pytest.fixture
def process(context, digest):
    process = ServingProcess.of(context)
    process.start()
    yield process
    process.stop()


@pytest.fixture
def client(process, new_key):
    with TestClient(process.door(process.app, "")) as client:
        client.headers["Authorization"] = f"Bearer {new_key(auth.PREDICT)}"
        yield client


def test_a_prediction_is_whole(context, client, digest):
    answer = client.post("/predictions", content=picture(3), headers=PNG)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.keys() == {"label", "probabilities", "model_version", "generation", "request_id"}
    assert (body["model_version"], body["generation"]) == (digest, 1)
    assert body["request_id"] == answer.headers["x-request-id"]
    assert tuple(body["probabilities"]) == CLASSES
    assert body["label"] == max(body["probabilities"], key=body["probabilities"].get)
    expected = reference_probabilities(context, digest, pixels_of(3)[None])[0]
    np.testing.assert_allclose(list(body["probabilities"].values()), expected, atol=0.03)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_raw_body_and_form_field_say_the_same(client, kind):
    content = picture(4, kind=kind, size=(32, 24))
    raw = client.post("/predictions", content=content, headers={"content-type": f"image/{kind.lower()}"}).json()
    form = client.post(
        "/predictions", files={"image": ("face", content, "image/png")}
    ).json()  # declared type is not trusted
    bare = client.post("/predictions", content=content, headers={"content-type": "application/octet-stream"}).json()
    assert raw["probabilities"] == form["probabilities"] == bare["probabilities"]


def test_a_large_image_is_decoded_too(client):
    answer = client.post("/predictions", content=picture(4, kind="JPEG", size=(190, 200)), headers=JPEG)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("content", "headers", "status", "sentence"),
    [
        (b"", PNG, 422, "empty body"),
        (b"hello", PNG, 415, "JPEG, PNG or WebP"),
        (b"GIF89a" + bytes(50), {"content-type": "image/gif"}, 415, "content type image/jpeg"),
        (b'{"image": "x"}', {"content-type": "application/json"}, 415, "content type image/jpeg"),
        (picture(1)[:200], PNG, 422, "damaged or truncated"),
        (picture(1, size=(201, 200), mode="1"), PNG, 413, "at most 40,000 pixels, got 200 x 201"),
        (bytes(50_001), PNG, 413, "at most 50,000 bytes, got 50,001"),
        (bytes(3_000_000), PNG, 413, "body of at most"),
        (b"--x\r\nrubbish", {"content-type": "multipart/form-data; boundary=x"}, 422, "form"),
        (b"", {"content-type": "multipart/form-data"}, 422, "well-formed form"),
    ],
)
def test_what_is_no_image_gets_a_problem_and_spoils_nothing(
    client, assert_problem, *, content, headers, status, sentence
):
    body = assert_problem(client.post("/predictions", content=content, headers=headers), status)
    assert sentence in body["detail"]
    assert client.post("/predictions", content=picture(3), headers=PNG).status_code == 200


@pytest.mark.parametrize(
    "disposition", ['name="photo"; filename="a.png"', 'name="image"', 'name=""', 'filename="a.png"']
)
def test_a_form_without_the_file_is_named(client, assert_problem, disposition):
    body = f"--b\r\ncontent-disposition: form-data; {disposition}\r\n\r\n".encode() + picture(1) + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert "'image'" in assert_problem(client.post("/predictions", content=body, headers=headers), 422)["detail"]


def test_two_files_are_refused(client, assert_problem):
    files = [("image", ("a", picture(1))), ("image", ("b", picture(2)))]
    assert_problem(client.post("/predictions", files=files), 422)


def test_a_body_without_a_length_is_cut_off_where_the_limit_is(client, assert_problem):
    def chunks():
        for _ in range(100):
            yield bytes(100_000)

    assert_problem(client.post("/predictions", content=chunks(), headers=PNG), 413)


def test_a_form_never_touches_the_disk(client, monkeypatch):
    import tempfile

    def refuse(*_: object, **__: object) -> None:
        raise OSError("a face must not be written")

    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    assert 40_000 < len(stream.getvalue()) < 50_000
    assert client.post("/predictions", files={"image": ("face", stream.getvalue())}).status_code == 200


def test_a_key_with_the_scope_is_needed_before_the_body_is_read(client, new_key, assert_problem):
    other = new_key(auth.READ, key_id="other")
    for header, status in ({"Authorization": ""}, 401), ({"Authorization": "Bearer exp_x_y"}, 401), (
        {"Authorization": f"Bearer {other}"}, 403,
    ):  # fmt: skip
        assert_problem(client.post("/predictions", content=b"not an image", headers={**PNG, **header}), status)


def test_without_a_model_it_says_try_later(context, new_key, assert_problem):
    process = ServingProcess.of(context)
    process.start()
    try:
        with TestClient(process.door(process.app, "")) as client:
            client.headers["Authorization"] = f"Bearer {new_key(auth.PREDICT)}"
            body = assert_problem(client.post("/predictions", content=picture(1), headers=PNG), 503)
            assert "train one first" in body["detail"]
            assert "train one first" in assert_problem(client.get("/health/ready"), 503)["detail"]
            assert client.get("/health/live").json() == {"status": "alive"}
    finally:
        process.stop()


def test_a_swap_changes_version_and_answers_together(context, process, client):
    other = add_version(context, 2)
    before = client.post("/predictions", content=picture(5), headers=PNG).json()
    commit(context, stage(context, other))
    while (after := client.post("/predictions", content=picture(5), headers=PNG)).status_code == 503:
        pass  # committed without waiting for this process to stage, as no coordinator would
    body = after.json()
    assert (body["model_version"], body["generation"]) == (other, 2)
    assert body["probabilities"] != before["probabilities"]
    expected = reference_probabilities(context, other, pixels_of(5)[None])[0]
    np.testing.assert_allclose(list(body["probabilities"].values()), expected, atol=0.03)


def test_a_process_with_enough_to_do_refuses_more(context, digest, new_key, assert_problem):
    settings = context.settings.model_copy(update={"max_queue": 1})
    busy = type(context)(settings, context.engine, context.keyring, context.now)
    process = ServingProcess.of(busy)
    process.start()
    try:
        with TestClient(process.door(process.app, "")) as client:
            client.headers["Authorization"] = f"Bearer {new_key(auth.PREDICT)}"

            gate, answers = threading.Event(), []

            def send() -> None:
                answers.append(client.post("/predictions", content=picture(1), headers=PNG))

            process.batcher.on_inference_thread(lambda: gate.wait(30))
            threads = [threading.Thread(target=send) for _ in range(2)]
            for thread in threads:
                thread.start()
            while not answers:  # the second is refused at once, the first waits
                time.sleep(0.01)
            gate.set()
            for thread in threads:
                thread.join()
            refused, answered = answers
            assert assert_problem(refused, 503)["detail"].startswith("Expected fewer than 1 images")
            assert answered.status_code == 200
    finally:
        process.stop()


def test_openapi_describes_the_route(client):
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/predictions"]["post"]
    assert set(operation["requestBody"]["content"]) == {"image/jpeg", "image/png", "image/webp", "multipart/form-data"}
    assert {"200", "401", "403", "413", "415", "422", "503"} <= operation["responses"].keys()
    assert operation["security"]
    assert json.dumps(operation["responses"]["200"]).count("PredictionAnswer")
