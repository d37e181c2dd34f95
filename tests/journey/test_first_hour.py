"""A stranger's first hour, from the wheel in an empty environment to the certificate, as docs/own-data.md tells it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest
from PIL import Image

from audit.policy import PRESETS, load_policy
from service.launch import free_ports
from tests.journey.conftest import ENDS, TINY_RECIPE
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.wheel import build, install, run
from unlearning.faces import read_metadata
from unlearning.faces.sources import synthetic

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]

RECIPE = {**TINY_RECIPE, "width": 4, "batch_size": 8, "epochs": 6}
POLICY = replace(PRESETS["standard"], name="mine", retain_ratio_min=0.5, test_ratio_min=0.5, retrain_attempts=6)
"""A tenth of a dozen people is one, on whose images an accuracy says little."""
CASE = "DSR-2026/0141"
PAGES = ("/", "/requests/{}", "/runs", "/models", "/banks", "/methods", "/register")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("optuna")
    return install(build(tmp_path_factory.mktemp("dist")), tmp_path_factory.mktemp("clean"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """JPEG files in folders, and a table as an office program writes it: a mark of the encoding, quotes, its own line
    ends, columns of its own, and one column too many."""
    drawn, folder = tmp_path / "drawn", tmp_path / "images"
    synthetic.write_folder(drawn, n_subjects=12, images_per_subject=6, size=(16, 16), seed=1)
    people, rows = list(read_metadata(drawn)), []
    middle = sorted(row.label for row in people)[len(people) // 2]
    for number, row in enumerate(people):
        file = folder / row.user_id / f"IMG {number:04}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.open(drawn / row.file_name).save(file, quality=95)
        rows.append(
            (
                file.relative_to(folder).as_posix(),
                "2026-05-01",
                f"Müller, {row.user_id}",
                "yes" if row.label < middle else "no",
            )
        )
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerows([("image", "taken", "customer", "outcome"), *rows])
    (folder / "people.csv").write_bytes(text.getvalue().encode("utf-8-sig"))
    return folder


@pytest.fixture
def expunge(program: Path, tmp_path: Path) -> Callable[..., str]:
    """The installed program in an empty folder; gives what it prints."""

    def call(*words: str) -> str:
        done = run(str(program), *words, cwd=tmp_path, **environment(tmp_path))
        assert done.returncode == 0, f"{words[:2]}: {done.stdout}{done.stderr}"
        return done.stdout

    return call


def environment(folder: Path) -> dict[str, str]:
    given = {"home": folder / "home", "recipe": folder / "recipe.json", "policy": folder / "policy.json"}
    return {f"EXPUNGE_{name.upper()}": str(value) for name, value in given.items()} | {"COLUMNS": "200"}


@contextmanager
def up(program: Path, folder: Path, exported: dict[str, str]) -> Iterator[tuple[str, str]]:
    """`expunge up` with what `prepare` said to export; gives the addresses of the API and of the console."""
    port, console_port = free_ports(2)
    own = {"EXPUNGE_PORT": str(port), "EXPUNGE_CONSOLE_PORT": str(console_port), "EXPUNGE_API_WORKERS": "1"}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = folder / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [str(program), "up"], cwd=folder, env={**inherited, **environment(folder), **own, **exported},
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_until(lambda: "Ctrl-C" in said.read_text() or process.poll() is not None, "the service to be up")
            assert process.poll() is None, said.read_text()
            assert "No key yet" not in said.read_text()
            yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{console_port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_SECONDS)


def test_from_the_wheel_to_a_certificate(
    program: Path, images: Path, expunge: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    (tmp_path / "policy.json").write_text(json.dumps(asdict(POLICY)))
    columns = ("--file", "image", "--person", "customer", "--label", "outcome")
    assert "72 images" in expunge("data", "import", str(images), "--table", str(images / "people.csv"), *columns)
    assert "72 images of 12 people: every rule holds." in expunge("data", "check")

    told = expunge("prepare", "remix", "--yes", "--probes", "3", "--models", "8", "--trials", "1")
    assert "Recommended: " in told
    (exports,) = re.findall(r"^ *export (.+)$", told, re.MULTILINE)
    exported = dict(word.partition("=")[::2] for word in exports.split())
    assert load_policy(exported["EXPUNGE_POLICY"]).name == "mine-recommended"
    scopes = ("predict", "erasure:write", "erasure:read", "audit:read")
    key = expunge("keys", "create", "operator", *(word for scope in scopes for word in ("--scope", scope))).split()[-1]

    rows = read_metadata(tmp_path / "home" / "data")
    person = next(row.user_id for row in rows if row.split == "train")
    image = tmp_path / "home" / "data" / next(row.file_name for row in rows if row.split == "test")
    with (
        up(program, tmp_path, exported) as (url, console),
        httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client,
    ):
        client.headers["Authorization"] = f"Bearer {key}"
        answer = client.post("/v1/predictions", content=image.read_bytes(), headers={"Content-Type": "image/jpeg"})
        assert answer.status_code == 200, answer.text
        filed = client.post("/v1/erasure-requests", json={"user_ids": [person], "case_references": [CASE]})
        assert filed.status_code == 202, filed.text
        (receipt,) = filed.json()["requests"]
        request = f"/v1/erasure-requests/{receipt['id']}"
        wait_until(
            lambda: client.get(request).raise_for_status().json()["state"] in ENDS, "the erasure to end", seconds=300
        )
        status = json.loads(expunge("status", receipt["id"], "--key", key, "--url", url))
        assert (status["state"], status["outcome"], status["case_reference"]) == ("completed", "erased", CASE)
        after = client.post("/v1/predictions", content=image.read_bytes(), headers={"Content-Type": "image/jpeg"})
        assert after.raise_for_status().json()["model_version"] != answer.json()["model_version"]
        (tmp_path / "certificate.json").write_bytes(client.get(f"{request}/certificate").raise_for_status().content)
        verdict = expunge("verify", "certificate.json", "--key", str(tmp_path / "home" / "keys" / "signing.pub"))
        assert verdict.startswith("Verdict: ")
        look_at_the_console(console, key, receipt["id"])
    assert all(row.user_id != person for row in read_metadata(tmp_path / "home" / "data"))


def look_at_the_console(console: str, key: str, request_id: str) -> None:
    """Sign in as a browser does, and open the pages."""
    with httpx.Client(
        base_url=console, timeout=PATIENCE_SECONDS, headers={"Accept": "text/html", "Origin": console}
    ) as browser:
        assert browser.post("/sign-in", data={"key": key}).status_code == 303
        for page in PAGES:
            found = browser.get(page.format(request_id))
            assert found.status_code == 200, (page, found.status_code, found.text[:500])
        assert CASE in browser.get(f"/requests/{request_id}").text
