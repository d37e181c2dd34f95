"""`make demo`: the whole procedure from nothing, on real faces, with real processes, reported line by line.

Tested in `tests/service/commands/test_demo_home.py`.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlmodel import select

from audit.proof.certificate import verify
from audit.proof.envelope import read_public_keys
from audit.report.wording import learned_sentences
from service.commands.demo_home import PEOPLE, demo_settings, make_demo_home, own
from service.commands.home import wait_ready
from service.context import Context
from service.errors import ExpungeError, StartupError
from service.launch import Processes, free_ports
from service.settings import Settings
from service.store.engine import reading
from service.store.tables import ServingWorker
from unlearning.faces import read_metadata

PATIENCE_SECONDS = 1200.0


def run_demo(settings: Settings, console: Console) -> None:
    """Serve, predict, erase three people one after another, verify; raises ExpungeError if a step fails."""
    started = time.monotonic()
    demo, aside = demo_settings(settings, free_ports(2))
    home, place = demo.home, demo.home.parent
    own(place)
    if aside:
        console.print(f"The demo runs a service of its own and ignores these of your settings: {', '.join(aside)}.")
    _say(console, 1, "A company's images and its model")
    console.print("The AT&T faces: 400 images of 40 people. The task is to tell who wears glasses.")
    key = make_demo_home(demo, place, console)
    with Processes(demo) as processes:
        _say(console, 2, "Serving")
        processes.start_serving()
        processes.start_worker()
        wait_ready(processes, demo, console)
        console.print(
            "Trainings take their full share of the processor here, since you are the one who waits; elsewhere they "
            "pause for predictions (EXPUNGE_TRAINING_PRIORITY)."
        )
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{demo.port}", headers={"Authorization": f"Bearer {key}"}, timeout=30
        )
        faces = _faces_of_others(demo)
        _predict_some(client, faces, console)
        service, erased = _Service(demo, processes, client, key, faces), []
        for number, person in enumerate(PEOPLE, 3):
            _say(console, number, f"Person {person} asks to be erased")
            erased.append(_erase(person, service, console))
        _say(console, 6, "What it cost")
        _show_prices(erased, console)
    _say(console, 7, "Where to find everything")
    for one in erased:
        console.print(f"  certificate   {one.path}   (check it: expunge verify {one.path})")
    for report in sorted(demo.reports_folder.glob("*/*.html")):
        console.print(f"  audit report  {report}")
    console.print(f"  data, weights, banks, database, logs   {home}")
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Both processes are stopped.")


@dataclass(frozen=True)
class _Service:
    """The service of the demo, its client, and faces to send."""

    settings: Settings
    processes: Processes
    client: httpx.Client
    key: str
    faces: list[tuple[Path, str]]


@dataclass(frozen=True)
class Erased:
    """One person's erasure: seconds from the request to `completed`, and the certificate."""

    person: str
    seconds: float
    path: Path
    predicate: dict[str, Any]


def _erase(person: str, service: _Service, console: Console) -> Erased:
    """File a request, follow it under traffic, check and show what came of it."""
    settings, before = service.settings, _serving(service.settings)
    with Traffic(f"http://127.0.0.1:{settings.port}", service.key, [path for path, _ in service.faces]) as traffic:
        begun = time.monotonic()
        request = _file(person, service.client, console)
        request = _follow(service.processes, service.client, request["id"], console)
        seconds = time.monotonic() - begun
        time.sleep(1.0)  # some predictions by the new model
    _show_swap(before, _serving(settings), traffic, console)
    path = settings.home.parent / f"certificate-{person}.json"
    statement = _show_certificate(service.client, request, settings, path, console)
    _show_forgetting(statement, console)
    _show_purge(person, settings, console)
    return Erased(person, seconds, path, statement["predicate"])


def _show_prices(erased: Sequence[Erased], console: Console) -> None:
    """What each erasure cost, beside plain retraining, and what was paid ahead."""
    table = Table("person", "method", "request to completed", "caused, in trainings", "learned, d′", "power")
    for one in erased:
        figures, cost = one.predicate["figures"], one.predicate["cost"]
        gate = figures["gate"]
        learned = f"{gate['learned']['value']:.1f}" if gate["learned"] else "not known"
        power = f"{gate['power']:.2f}" if gate["power"] is not None else "not known"
        table.add_row(
            one.person, one.predicate["procedure"]["method"], f"{one.seconds:.1f} s", f"{cost['total']:.2f}",
            learned, power,
        )  # fmt: skip
    console.print(table)
    cost = erased[-1].predicate["cost"]
    console.print(
        f"  Plain retraining is 1 training, {cost['training_seconds']:.1f} s of one core, without any evidence of what "
        f"was forgotten. Paid ahead, once for all whom these banks judge: {cost['ahead']:.0f} trainings."
    )


def _faces_of_others(settings: Settings) -> list[tuple[Path, str]]:
    """Test images, five with glasses and five without."""
    rows = [row for row in read_metadata(settings.data_folder) if row.split == "test"]
    chosen = [row for label in ("glasses", "no_glasses") for row in [r for r in rows if r.label == label][:25:5]]
    return [(settings.data_folder / row.file_name, row.label) for row in chosen]


def _predict_some(client: httpx.Client, faces: list[tuple[Path, str]], console: Console) -> None:
    table = Table("image", "label", "prediction", "probability", "generation", "milliseconds")
    for path, label in faces[::3]:
        begun = time.perf_counter()
        answer = _json(client.post("/v1/predictions", content=path.read_bytes(), headers={"Content-Type": "image/png"}))
        seconds = time.perf_counter() - begun
        probability = answer["probabilities"][answer["label"]]
        table.add_row(
            path.name, label, answer["label"], f"{probability:.3f}", str(answer["generation"]), f"{seconds * 1000:.1f}"
        )
    console.print(table)


def _file(person: str, client: httpx.Client, console: Console) -> dict[str, Any]:
    answer = client.post(
        "/v1/erasure-requests", json={"user_ids": [person]}, headers={"Idempotency-Key": secrets.token_hex(8)}
    )
    receipt: dict[str, Any] = _json(answer)["requests"][0]
    console.print(f"POST /v1/erasure-requests → {answer.status_code}; request {receipt['id']}, due {receipt['due_at']}")
    return receipt


def _follow(processes: Processes, client: httpx.Client, request_id: str, console: Console) -> dict[str, Any]:
    """Show the request's states until it is completed; a bar where the phase knows how far it is."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    begun, shown = time.monotonic(), ""
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("queued", total=None)
        while True:
            processes.check()
            request: dict[str, Any] = _json(client.get(f"/v1/erasure-requests/{request_id}"))
            state, progress = request["state"], request.get("progress") or ""
            if state != shown:
                bar.console.print(f"  {time.monotonic() - begun:6.1f} s  {state}")
                shown = state
            done, _, total = progress.rpartition(" ")[2].partition("/")
            bar.update(
                task,
                description=progress or state,
                completed=int(done) if total else 0,
                total=int(total) if total else None,
            )
            if state in ("completed", "needs_attention", "rejected", "cancelled"):
                break
            if time.monotonic() > deadline:
                raise StartupError(f"Expected the request to complete within {PATIENCE_SECONDS:.0f} s; it is {state}.")
            time.sleep(0.2)
        bar.remove_task(task)
    if state != "completed":
        raise ExpungeError(f"Expected the request to complete, it is {state}: {request.get('attention_reason')}")
    return request


def _show_swap(before: dict[str, int], after: dict[str, int], traffic: Traffic, console: Console) -> None:
    if before.keys() != after.keys():
        raise ExpungeError("Expected the same serving processes before and after, found others: one was restarted.")
    if traffic.failures:
        raise ExpungeError(
            f"Expected no failed prediction, counted {len(traffic.failures)}; the first: {traffic.failures[0]}"
        )
    if set(after.values()) != {max(traffic.generations)} or max(after.values()) <= max(before.values()):
        raise ExpungeError(f"Expected every serving process on a new generation, found {sorted(after.values())}.")
    counts = ", ".join(f"{n} by generation {g}" for g, n in sorted(traffic.generations.items()))
    generation = max(after.values())
    console.print(f"  swap          the same {len(after)} serving processes as before, now on generation {generation}")
    console.print(f"  predictions   {sum(traffic.generations.values())} sent meanwhile ({counts}), none failed")


def _show_certificate(
    client: httpx.Client, request: dict[str, Any], settings: Settings, path: Path, console: Console
) -> dict[str, Any]:
    certificate: dict[str, Any] = _json(client.get(f"/v1/certificates/{request['certificate_id']}"))
    path.write_text(json.dumps(certificate, indent=2))
    key = read_public_keys((settings.keys_folder / "signing.pub").read_bytes())
    digest = next(iter(settings.models_folder.glob("*.safetensors")))
    result = verify(path, public_key=key, weights_path=digest)
    if not result.erased:
        raise ExpungeError(
            "Expected a valid certificate of a completed erasure: " + " ".join(c.sentence for c in result.checks)
        )
    console.print(
        f"  certificate   valid, checked offline against the service's key and the weights in service: {result.verdict}"
    )
    return dict(result.statement or {})


def _show_forgetting(statement: dict[str, Any], console: Console) -> None:
    predicate = statement["predicate"]
    console.print(f"  method        {predicate['procedure']['method']}")
    for sentence in learned_sentences(predicate["figures"]):
        console.print(f"  {sentence}")
    table = Table("check", "what it says", title="The audit", title_justify="left", show_lines=False)
    for check in predicate["checks"]:
        if check["applicable"]:
            table.add_row(check["name"].replace("_", " "), check["sentence"])
    console.print(table)
    means = predicate["figures"]["margin_means"]
    console.print(
        f"  The mean margin on the person's ten images was {means['original']:.2f} under the original model, is "
        f"{means['deployed']:.2f} under the one in service now, and {means['retrained']:.2f} "
        f"(± {means['retrained_deviation']:.2f}) under {predicate['figures']['n_models']} models trained without "
        "the person."
    )


def _show_purge(person: str, settings: Settings, console: Console) -> None:
    left = [row for row in read_metadata(settings.data_folder) if row.user_id == person]
    weights = list(settings.models_folder.glob("*.safetensors"))
    if left or len(weights) != 1:
        raise ExpungeError(f"Expected no image of {person} and one model, found {len(left)} and {len(weights)}.")
    console.print(
        f"  destroyed     the images of {person}, packed copies, columns of reference banks and every older model"
    )


def _serving(settings: Settings) -> dict[str, int]:
    """Generation each live serving process answers with, by process."""
    context = Context.open(settings)
    with reading(context.engine) as s:
        rows = s.exec(select(ServingWorker).where(ServingWorker.lease_until > context.now())).all()
    return {f"{row.boot_id} {row.pid}": row.acknowledged_generation for row in rows}


@dataclass
class Traffic:
    """A client that keeps sending images, one after the other."""

    url: str
    key: str = field(repr=False)
    paths: list[Path] = field(repr=False)
    generations: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        images = [path.read_bytes() for path in self.paths]
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "image/png"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=10) as client:
            while not self._stop.wait(0.05):
                for image in images:
                    try:
                        answer = client.post("/v1/predictions", content=image)
                        answer.raise_for_status()
                        self.generations[answer.json()["generation"]] += 1
                    except httpx.HTTPError as error:
                        self.failures.append(str(error))


def _json(answer: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    if answer.is_error:
        raise ExpungeError(
            f"{answer.request.method} {answer.request.url.path} answered {answer.status_code}: {body.get('detail')}"
        )
    return body


def _say(console: Console, number: int, title: str) -> None:
    console.print(f"\n[bold]{number}  {title}[/bold]")
