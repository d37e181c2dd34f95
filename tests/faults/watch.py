"""What is looked at from the outside while things die: answers over HTTP, files, and the database's rows.

answers      every prediction's weights are the first ones, or a candidate whose passed audit the log had before
no way back  once a request is completed, nothing older than its model answers
once         each accepted request is completed once, with one certificate, which verifies
erased       each person of whom the folder held images is completed as `erased`
in service   the home holds the weights that answer and no others, and the latest certificate is about these
nothing left the person's id, file names, files and pixels are in no file of the home, their tag in no bank

`history` has what is looked at over all certificates of a home together.
"""

from __future__ import annotations

import hmac
import json
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np
from sqlmodel import col, select

from audit.proof.certificate import verify
from audit.proof.envelope import read_public_keys
from service.context import Context
from service.settings import Settings
from service.store.engine import reading
from service.store.tables import CertificateRecord, ErasureRequest, ModelVersion, RequestEvent
from tests.waiting import join
from unlearning.faces import read_metadata
from unlearning.faces.decoding import decode

ALLOWED = frozenset({200, 503})  # 503: fenced, or loading after it was started anew


def client_of(settings: Settings, seconds: float = 20.0) -> httpx.Client:
    """An operator's client."""
    key = (settings.home / "operator.key").read_text()
    return httpx.Client(
        base_url=f"http://127.0.0.1:{settings.port}", headers={"Authorization": f"Bearer {key}"}, timeout=seconds
    )


@dataclass
class Answers:
    """What predictions answered so far."""

    statuses: Counter[int | str] = field(default_factory=Counter)
    first_seen: dict[str, datetime] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


class Watcher:
    """Asks for predictions all the time, in a thread of its own."""

    def __init__(self, settings: Settings, pause_seconds: float = 0.05) -> None:
        rows = read_metadata(settings.data_folder)
        self._image = next(settings.data_folder / row.file_name for row in rows if row.split == "test").read_bytes()
        self._settings, self._pause = settings, pause_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._least = 0  # generation that everything asked from now on must reach
        self._lock = threading.Lock()
        self.answers = Answers()

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        join(self._thread)

    def require(self, generation: int) -> None:
        """From now on nothing older may answer."""
        with self._lock:
            self._least = max(self._least, generation)

    def ask_once(self, client: httpx.Client) -> str:
        """Digest of the weights that answer a prediction now; "" where none do."""
        answer = client.post("/v1/predictions", content=self._image, headers={"Content-Type": "image/png"})
        return str(answer.json()["model_version"]) if answer.status_code == 200 else ""

    def _watch(self) -> None:
        while not self._stop.is_set():
            with client_of(self._settings, 10.0) as client, suppress(httpx.TransportError):
                while not self._stop.wait(self._pause):
                    self._ask(client)

    def _ask(self, client: httpx.Client) -> None:
        with self._lock:
            least = self._least
        try:
            answer = client.post("/v1/predictions", content=self._image, headers={"Content-Type": "image/png"})
        except httpx.TransportError as error:
            self.answers.statuses[type(error).__name__] += 1
            time.sleep(0.05)
            raise
        self.answers.statuses[answer.status_code] += 1
        if answer.status_code not in ALLOWED:
            self.answers.complaints.append(f"a prediction answered {answer.status_code}")
        if answer.status_code != 200:
            return
        body = answer.json()
        version, generation = body["model_version"], body["generation"]
        self.answers.first_seen.setdefault(version, datetime.now().astimezone())
        self.answers.generations.setdefault(version, generation)
        if generation < least:
            self.answers.complaints.append(f"generation {generation} answered when {least} was completed")


def check_answers(settings: Settings, answers: Answers, first_version: str, trained: Collection[str] = ()) -> list[str]:
    """What was wrong with the predictions' answers; `trained`: weights that `expunge train` put into service."""
    found = list(answers.complaints)
    with client_of(settings) as client:
        always = datetime.min.replace(tzinfo=datetime.now().astimezone().tzinfo)
        certified = dict.fromkeys([first_version, *trained], always)
        for entry in _log_entries(client):
            content = json.loads(entry["entry"])
            if entry["kind"] == "audit" and content["verdict"] == "PASSED":
                certified.setdefault(content["weights"], datetime.fromisoformat(content["at"]))
    for version, seen in answers.first_seen.items():
        if version not in certified:
            found.append(f"weights {version[:12]} answered that no audit passed")
        elif certified[version] > seen:
            found.append(f"weights {version[:12]} answered before their audit passed")
    if not answers.statuses[200]:
        found.append("no prediction was ever answered")
    return found


def _log_entries(client: httpx.Client) -> Iterator[dict[str, Any]]:
    start = 0
    while page := client.get("/v1/log/entries", params={"start": start, "limit": 100}).raise_for_status().json():
        yield from page["entries"]
        start += len(page["entries"])
        if not page["entries"] or start >= page["tree_size"]:
            return


@dataclass(frozen=True)
class Person:
    """Somebody to be erased, what must be found nowhere afterwards, and what the folder held of them before.

    Attributes:
        tag: under which reference banks hold the person's columns.
        n_images: image files of theirs.
        n_trained: of these, those in the training split.
        n_copies: files that no row names with the bytes of one of these.
    """

    user_id: str
    needles: tuple[bytes, ...]
    tag: str = ""
    n_images: int = 0
    n_trained: int = 0
    n_copies: int = 0


def person_of(settings: Settings, user_id: str, size: tuple[int, int], channels: int = 3) -> Person:
    """The needles: id, tag, file names, a piece of each file, and rows of the decoded pixels."""
    key = (settings.keys_folder / "block.key").read_bytes()
    tag = hmac.new(key, user_id.encode(), sha256).hexdigest()
    needles, splits, contents = [user_id.encode(), tag.encode()], [], []
    for row in read_metadata(settings.data_folder):
        if row.user_id != user_id:
            continue
        splits.append(row.split)
        content = (settings.data_folder / row.file_name).read_bytes()
        contents.append(content)
        pixels = decode(content, size=size, channels=channels)
        needles += [Path(row.file_name).stem.encode(), content[40:120]]
        needles += [pixels[y].tobytes() for y in (size[0] // 4, size[0] // 2) if np.ptp(pixels[y])]
    n_copies = sum(path.read_bytes() in contents for path in (settings.data_folder / "copies").glob("*"))
    return Person(user_id, tuple(needles), tag, len(splits), splits.count("train"), n_copies)


def found_in(folders: Iterable[Path], persons: Iterable[Person]) -> list[str]:
    """Files of the folders that hold a needle of one of these people."""
    needles = [needle for person in persons for needle in person.needles]
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                content = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:
                continue
            name = path.relative_to(folder).as_posix()
            if any(needle in content or needle in name.encode() for needle in needles):
                found.append(name)
    return found


def check_completed(settings: Settings, filed: Mapping[str, Person]) -> list[str]:
    """What `completed` promises of these requests, seen over HTTP and in the database."""
    found = []
    context = Context.open(settings)
    with reading(context.engine) as s:
        completions = Counter(s.exec(select(RequestEvent.request_id).where(RequestEvent.to_state == "completed")).all())
        certificates = Counter(
            s.exec(select(CertificateRecord.request_id).where(col(CertificateRecord.request_id).is_not(None))).all()
        )
        kept = [row.id for row in s.exec(select(ErasureRequest)) if row.id in filed and row.user_id is not None]
        active = [row.digest for row in s.exec(select(ModelVersion)) if row.state == "active"]
    context.engine.dispose()
    found += [f"request {request_id[:8]} still names its person" for request_id in kept]
    found += check_weights(settings, active)
    key = read_public_keys((settings.keys_folder / "signing.pub").read_bytes())
    retired = [read_public_keys(path.read_bytes()) for path in (settings.keys_folder / "retired").glob("*.pub")]
    keys = [each for one in (key, *retired) for each in one]
    with client_of(settings) as client:
        for request_id, person in filed.items():
            request = client.get(f"/v1/erasure-requests/{request_id}").raise_for_status().json()
            name, outcome = f"request {request_id[:8]}", "erased" if person.n_images else "no_data_held"
            if (request["state"], request["outcome"]) != ("completed", outcome):
                found.append(f"{name} is {request['state']} with outcome {request['outcome']}, expected {outcome}")
                continue
            if completions[request_id] != 1 or certificates[request_id] != 1:
                counts = f"{completions[request_id]} times with {certificates[request_id]} certificates"
                found.append(f"{name} was completed {counts}")
            certificate = client.get(f"/v1/certificates/{request['certificate_id']}").raise_for_status().json()
            result = verify(certificate, public_key=keys)
            if not (result.valid and result.erased):
                found.append(f"the certificate of {name} does not verify")
    return found


def check_weights(settings: Settings, active: Collection[str]) -> list[str]:
    """Whether the home holds the active weights, whole, and no others: they would remember those who were erased."""
    files = [path for path in settings.home.rglob("*safetensors*") if path.is_file()]
    wanted = {settings.models_folder / f"{digest}.safetensors" for digest in active}
    found = [f"other weights than the active ones in {path.relative_to(settings.home).parent}"
             for path in files if path not in wanted]  # fmt: skip
    for path in wanted:
        if not path.is_file() or sha256(path.read_bytes()).hexdigest() != path.stem:
            found.append("the active weights are not whole in the registry")
    return found
