"""Predictions over HTTP in one process: the answer, its errors, its protection."""

from __future__ import annotations

import io
import json
import threading
import warnings
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.keys import api_keys
from service.models.deployment import activate_first, commit, deploy, stage
from service.serving import images
from service.serving.connections import PatientProtocol
from service.serving.predict import MOST_IMAGES
from service.serving.process import ServingProcess
from tests.service.versions import CLASSES, add_version, image, pixels_of, reference_probabilities
from tests.waiting import PATIENCE_SECONDS, join, wait_until

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
    with TestClient(process.fast_path(process.app, "")) as client:
        client.headers["Authorization"] = f"Bearer {new_key(api_keys.PREDICT)}"
        yield client


def test_a_prediction_is_whole(context, client, digest):
    answer = client.post("/predictions", content=image(3), headers=PNG)
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
    content = image(4, kind=kind, size=(32, 24))
    raw = client.post("/predictions", content=content, headers={"content-type": f"image/{kind.lower()}"}).json()
    form = client.post(
        "/predictions", files={"image": ("face", content, "image/png")}
    ).json()  # declared type is not trusted
    bare = client.post("/predictions", content=content, headers={"content-type": "application/octet-stream"}).json()
    assert raw["probabilities"] == form["probabilities"] == bare["probabilities"]


@pytest.mark.parametrize(
    "declared",
    ["image/jpg", "image/pjpeg", "image/x-png", "image/*", "IMAGE/JPEG; q=1", "application/octet-stream", ""],
)
def test_the_bytes_decide_what_an_image_is(client, declared):
    expected = client.post("/predictions", content=image(4), headers=PNG).json()
    answer = client.post("/predictions", content=image(4), headers={"content-type": declared})
    assert answer.status_code == 200, answer.text
    assert answer.json()["probabilities"] == expected["probabilities"]


@pytest.mark.parametrize(
    "disposition",
    ['name="image"', "name=image", "name=\"image\"; filename*=UTF-8''f%C3%A9.png", 'name="image"; filename=""'],
)
@pytest.mark.parametrize("path", ["/predictions", "/predictions/batch"])
def test_a_form_s_image_needs_no_file_name(client, disposition, path):
    expected = client.post("/predictions", content=image(4), headers=PNG).json()
    part = f"--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + image(4)
    other = b'\r\n--b\r\nContent-Disposition: form-data; name="note"\r\n\r\nnothing'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post(path, content=part + other + b"\r\n--b--\r\n", headers=headers)
    assert answer.status_code == 200, answer.text
    found = answer.json() if path == "/predictions" else answer.json()["predictions"][0]
    assert found["probabilities"] == expected["probabilities"]


def test_a_form_that_comes_in_single_bytes(client):
    body = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + image(4) + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/predictions", content=(body[i : i + 1] for i in range(len(body))), headers=headers)
    expected = client.post("/predictions", content=image(4), headers=PNG).json()
    assert answer.json()["probabilities"] == expected["probabilities"]


def test_a_form_of_many_other_parts_is_refused(client, assert_problem):
    files = {"image": ("a", image(1))}
    data = {f"field {number}": "x" for number in range(8)}
    assert client.post("/predictions", data=data, files=files).status_code == 200
    assert_problem(client.post("/predictions", data={**data, "one more": "x"}, files=files), 422)


def test_a_large_image_is_decoded_too(client):
    answer = client.post("/predictions", content=image(4, kind="JPEG", size=(190, 200)), headers=JPEG)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("content", "headers", "status", "sentence"),
    [
        (b"", PNG, 422, "empty body"),
        (b"hello", PNG, 415, "JPEG, PNG or WebP"),
        (b"GIF89a" + bytes(50), {"content-type": "image/gif"}, 415, "JPEG, PNG or WebP"),
        (b'{"image": "x"}', {"content-type": "application/json"}, 415, "content type image/jpeg"),
        (image(1)[:200], PNG, 422, "damaged or truncated"),
        (image(1, size=(201, 200), mode="1"), PNG, 413, "at most 40,000 pixels, got 200 x 201"),
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
    assert client.post("/predictions", content=image(3), headers=PNG).status_code == 200


@pytest.mark.parametrize(
    "disposition", ['name="photo"; filename="a.png"', 'name="photo"', 'name=""', 'filename="a.png"']
)
def test_a_form_without_the_file_is_named(client, assert_problem, disposition):
    body = f"--b\r\ncontent-disposition: form-data; {disposition}\r\n\r\n".encode() + image(1) + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert "'image'" in assert_problem(client.post("/predictions", content=body, headers=headers), 422)["detail"]


def test_two_files_are_refused(client, assert_problem):
    files = [("image", ("a", image(1))), ("image", ("b", image(2)))]
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
    other = new_key(api_keys.READ, key_id="other")
    for header, status in ({"Authorization": ""}, 401), ({"Authorization": "Bearer exp_x_y"}, 401), (
        {"Authorization": f"Bearer {other}"}, 403,
    ):  # fmt: skip
        assert_problem(client.post("/predictions", content=b"not an image", headers={**PNG, **header}), status)


def test_without_a_model_it_says_try_later(context, new_key, assert_problem):
    process = ServingProcess.of(context)
    process.start()
    try:
        with TestClient(process.fast_path(process.app, "")) as client:
            client.headers["Authorization"] = f"Bearer {new_key(api_keys.PREDICT)}"
            body = assert_problem(client.post("/predictions", content=image(1), headers=PNG), 503)
            assert "train one first" in body["detail"]
            assert "train one first" in assert_problem(client.get("/health/ready"), 503)["detail"]
            assert client.get("/health/live").json() == {"status": "alive"}
    finally:
        process.stop()


def test_a_swap_changes_version_and_answers_together(context, process, client):
    other = add_version(context, 2)
    before = client.post("/predictions", content=image(5), headers=PNG).json()
    commit(context, stage(context, other))

    def answered():  # committed without waiting for this process to stage, as no coordinator would
        after = client.post("/predictions", content=image(5), headers=PNG)
        return after if after.status_code != 503 else None

    body = wait_until(answered, "an answer after the swap").json()
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
        with TestClient(process.fast_path(process.app, "")) as client:
            client.headers["Authorization"] = f"Bearer {new_key(api_keys.PREDICT)}"

            gate, answers = threading.Event(), []

            def send() -> None:
                answers.append(client.post("/predictions", content=image(1), headers=PNG))

            process.batcher.on_inference_thread(lambda: gate.wait(PATIENCE_SECONDS))
            threads = [threading.Thread(target=send, daemon=True) for _ in range(2)]
            for thread in threads:
                thread.start()
            wait_until(lambda: answers, "one of the two to be refused while the other waits")
            gate.set()
            join(*threads)
            refused, answered = answers
            assert assert_problem(refused, 503)["detail"].startswith("Expected fewer than 1 images")
            assert answered.status_code == 200
    finally:
        process.stop()


def form(*contents: bytes) -> dict:
    return {"files": [("image", (f"{i}", content, "image/png")) for i, content in enumerate(contents)]}


def test_several_images_are_answered_in_order_by_one_version(context, client, digest):
    body = client.post("/predictions/batch", **form(*(image(i) for i in range(5)))).json()
    assert body.keys() == {"predictions", "model_version", "generation", "request_id"}
    assert (body["model_version"], body["generation"]) == (digest, 1)
    expected = reference_probabilities(context, digest, np.stack([pixels_of(i) for i in range(5)]))
    found = [list(each["probabilities"].values()) for each in body["predictions"]]
    np.testing.assert_allclose(found, expected, atol=0.03)
    for each in body["predictions"]:
        assert each["label"] == max(each["probabilities"], key=each["probabilities"].get)
        assert each["problem"] is None


def test_a_bad_image_among_good_ones_fails_alone(client):
    body = client.post("/predictions/batch", **form(image(1), b"hello", image(2)[:150], image(3))).json()
    assert [each["label"] is None for each in body["predictions"]] == [False, True, True, False]
    assert [each["problem"] and each["problem"]["status"] for each in body["predictions"]] == [None, 415, 422, None]
    assert body["predictions"][1]["problem"] == {
        "type": "urn:expunge:problem:unsupported-image", "title": "Unsupported image", "status": 415,
        "detail": "Expected a JPEG, PNG or WebP image, got other bytes.",
    }  # fmt: skip


def test_nothing_but_bad_images_have_no_version(client):
    body = client.post("/predictions/batch", **form(b"hello")).json()
    assert (body["model_version"], body["generation"]) == (None, None)
    assert body["predictions"][0]["problem"]["status"] == 415


def test_a_batch_is_a_form_of_bounded_length(client, assert_problem):
    answer = client.post("/predictions/batch", **form(*[image(1)] * MOST_IMAGES))
    assert len(answer.json()["predictions"]) == MOST_IMAGES
    too_many = client.post("/predictions/batch", **form(*[image(1)] * (MOST_IMAGES + 1)))
    assert f"one to {MOST_IMAGES} files" in assert_problem(too_many, 422)["detail"]
    assert_problem(client.post("/predictions/batch", content=image(1), headers=PNG), 415)
    assert_problem(client.post("/predictions/batch", data={"other": "x"}, files={"another": b"x"}), 422)


def test_the_most_probable_classes_alone(client):
    whole = client.post("/predictions", content=image(3), headers=PNG).json()
    ranked = sorted(whole["probabilities"].items(), key=lambda item: -item[1])
    for top in (1, 2, 3, 99):
        body = client.post(f"/predictions?top={top}", content=image(3), headers=PNG).json()
        assert list(body["probabilities"].items()) == ranked[:top]
        assert {**body, "probabilities": 0, "request_id": 0} == {**whole, "probabilities": 0, "request_id": 0}
    body = client.post("/predictions/batch?top=1", **form(image(3))).json()
    assert list(body["predictions"][0]["probabilities"].items()) == ranked[:1]


@pytest.mark.parametrize("top", ["0", "-1", "x", "", "1.5", "1" * 9, "%D9%A3", "1&top=2", "1&top=1"])
def test_a_top_that_is_no_number_is_named(client, assert_problem, top):
    body = assert_problem(client.post(f"/predictions?top={top}", content=image(3), headers=PNG), 422)
    assert body["errors"][0]["pointer"] == "query/top"


def test_times_are_told_in_a_header(client):
    answer = client.post("/predictions", content=image(3), headers=PNG)
    told = dict(part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
    assert told.keys() == {"decode", "wait", "model"}
    assert all(0 <= float(milliseconds) < 60_000 for milliseconds in told.values())


@contextmanager
def serving(context, **changes):
    """A process with other settings, and a client of it without a key."""
    process = ServingProcess.of(replace(context, settings=context.settings.model_copy(update=changes)))
    process.start()
    try:
        with TestClient(process.fast_path(process.app, "")) as client:
            yield process, client
    finally:
        process.stop()


def test_answers_are_the_same_without_speed_ups(context, digest, new_key):
    answers, headers = {}, {**PNG, "Authorization": f"Bearer {new_key(api_keys.PREDICT)}"}
    for speedups in ("all", "none"):
        with serving(context, speedups=speedups) as (process, client):
            assert (process.protocol("") is PatientProtocol) == (speedups == "none")
            answers[speedups] = client.post("/predictions", content=image(3), headers=headers).json()
    fast, plain = (np.array(list(answers[each].pop("probabilities").values())) for each in ("all", "none"))
    np.testing.assert_allclose(fast, plain, atol=0.03)
    assert [answers[each]["label"] for each in answers] == [CLASSES[int(plain.argmax())]] * 2


def test_a_temperature_makes_probabilities_milder_and_changes_no_label(context, digest, new_key):
    answers, headers = {}, {**PNG, "Authorization": f"Bearer {new_key(api_keys.PREDICT)}"}
    for temperature in (1.0, 4.0):
        with serving(context, temperature=temperature) as (_, client):
            answers[temperature] = client.post("/predictions", content=image(3), headers=headers).json()
    sharp, mild = (np.array(list(answers[t]["probabilities"].values())) for t in (1.0, 4.0))
    assert answers[1.0]["label"] == answers[4.0]["label"]
    np.testing.assert_allclose(mild, sharp**0.25 / (sharp**0.25).sum(), atol=1e-3)


def test_one_client_may_not_take_every_place(context, digest, new_key, assert_problem):
    headers = [{**PNG, "Authorization": f"Bearer {new_key(api_keys.PREDICT, key_id=name)}"} for name in ("a", "b")]
    with serving(context, max_client_queue=1) as (process, client), ThreadPoolExecutor() as pool:
        gate = threading.Event()
        process.batcher.on_inference_thread(lambda: gate.wait(PATIENCE_SECONDS))
        both = [pool.submit(client.post, "/predictions", content=image(1), headers=headers[0]) for _ in range(2)]
        done, (waiting,) = wait(both, PATIENCE_SECONDS, FIRST_COMPLETED)  # one is refused, the other waits
        other = pool.submit(client.post, "/predictions", content=image(1), headers=headers[1])
        gate.set()
        assert "one client" in assert_problem(done.pop().result(0), 429)["detail"]
        assert [each.result(PATIENCE_SECONDS).status_code for each in (waiting, other)] == [200, 200]
        assert client.post("/predictions", content=image(1), headers=headers[0]).status_code == 200


@pytest.mark.parametrize("path", ["/predictions", "/predictions/batch"])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"content": image(3)}, PNG), ({"content": b"hello"}, PNG), ({"content": b"x"}, {"content-type": "a"}),
        ({"files": {"image": image(3)}}, {}), ({"content": bytes(3_000_000)}, PNG),
        ({"content": image(3)}, {"authorization": ""}),
    ],
)  # fmt: skip
def test_both_ways_give_the_same_answer(process, client, path, body, headers):
    """Past the API's routers and through them."""
    headers = {"Authorization": client.headers["Authorization"], "X-Request-ID": "r", **headers}
    with TestClient(process.app) as through:
        short, long = (each.post(path, headers=headers, **body) for each in (client, through))
    assert short.status_code == long.status_code
    assert short.json() == long.json()
    assert short.headers.keys() == long.headers.keys()
    assert short.headers["x-request-id"] == "r"


def test_a_call_with_several_images_holds_up_no_swap(context, process, client, digest):
    other = add_version(context, 2)
    assert client.post("/predictions/batch", **form(image(1), image(2))).status_code == 200
    assert process.slot.has_finished_older_than(1)
    assert deploy(context, other, timeout_seconds=PATIENCE_SECONDS).generation == 2


def test_openapi_describes_the_route(client):
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/predictions"]["post"]
    assert set(operation["requestBody"]["content"]) == {"image/jpeg", "image/png", "image/webp", "multipart/form-data"}
    assert {"200", "401", "403", "413", "415", "422", "503"} <= operation["responses"].keys()
    assert operation["security"]
    assert json.dumps(operation["responses"]["200"]).count("PredictionAnswer")


def test_texts_in_a_png_are_inflated_off_the_event_loop(client, monkeypatch):
    threads, opened = [], images.opened

    def noting(*args, **options):
        threads.append(threading.current_thread().name.partition("_")[0])
        return opened(*args, **options)

    monkeypatch.setattr(images, "opened", noting)
    text = PngInfo()
    text.add_text("a", "b" * 100_000, zip=True)
    stream = io.BytesIO()
    Image.fromarray(pixels_of(1)).save(stream, "PNG", pnginfo=text)
    plain, with_text = (
        client.post("/predictions", content=each, headers=PNG) for each in (image(1), stream.getvalue())
    )
    assert plain.json()["probabilities"] == with_text.json()["probabilities"]
    assert threads[0] != "decode"
    assert threads[1:] == ["decode"]
