"""A running service on a bench: requests are filed, processes die as told, and what was promised is checked."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from sqlmodel import col, select

from service.context import Context
from service.launch import Processes, environment, stop
from service.settings import Settings
from service.store.engine import reading
from service.store.tables import CertificateRecord, ServingWorker
from tests.faults.history import check_history, data_digest
from tests.faults.home import SIZE, make_home, people
from tests.faults.watch import Person, Watcher, check_answers, check_completed, client_of, found_in, person_of
from tests.faults.zygote import Zygote
from tests.processes import is_alive

RUN_SECONDS = float(os.environ.get("FAULTS_RUN_SECONDS", "300"))  # for what takes a few on a quiet machine
GRACE_SECONDS = 15.0  # from the last thing seen from the outside to the last fail point, on a busy machine
OPEN_ENDS = frozenset({"completed", "needs_attention", "rejected", "cancelled"})


class Patience:
    """Seconds to wait for something; what a paused machine or a busy one takes between two looks counts as one."""

    def __init__(self, seconds: float) -> None:
        self._left, self._last = seconds, time.monotonic()

    def is_over(self) -> bool:
        """Whether they have passed."""
        now = time.monotonic()
        self._left -= min(now - self._last, 1.0)
        self._last = now
        return self._left < 0


@dataclass
class Tally:
    """What happened, for the table at the end."""

    kills: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    completed: int = 0
    repeated_calls: int = 0
    approved: int = 0
    n_predictions: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def n_kills(self) -> int:
        return sum(self.kills.values())

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))


class Bench:
    """One home with its serving processes, a zygote of workers, and a watcher."""

    def __init__(
        self,
        settings: Settings,
        processes: Processes,
        zygote: Zygote,
        watcher: Watcher,
        *,
        seed: int,
        first_version: str,
    ) -> None:
        self.settings, self.processes, self.zygote, self.watcher = settings, processes, zygote, watcher
        self.rng = random.Random(seed)
        self.first_version = first_version
        self.client = client_of(settings)
        self.tally = Tally()
        self.context = Context.open(settings)
        self.worker: int | None = None
        self.first_data = data_digest(settings.data_folder)
        self.trained: set[str] = set()
        self.changed_data: set[str] = set()
        self.is_stuck = False
        self.is_short = False  # serving processes were killed, and not all were seen alive since
        self.unserved: set[str] = set()  # requests completed while that was so: nobody may have served at their swap
        self.also_searched: Callable[[Collection[Person]], list[str]] = lambda persons: []
        self.clock = settings.home.parent / "clock"
        self._left = people(settings)
        self.rng.shuffle(self._left)
        self.erased: list[Person] = []
        self.filed: dict[str, Person] = {}
        self.completed: set[str] = set()

    @classmethod
    @contextmanager
    def running(
        cls, folder: Path, *, n_subjects: int = 60, seed: int = 0, attempts: int | None = None, **changes: Any
    ) -> Iterator[Bench]:
        """A bench on a new home; everything started is stopped at the end. `attempts`: see `zygote`."""
        settings = make_home(folder / "home", n_subjects=n_subjects, seed=seed, **changes)
        temporary = folder / "tmp"
        temporary.mkdir()
        first_version = first_version_of(settings)
        before, tempfile.tempdir = os.environ.get("TMPDIR"), None
        os.environ["TMPDIR"] = str(temporary)  # of every process started here: what they leave is searched, too
        try:
            with Zygote(attempts) as zygote, Processes(settings, patience_seconds=10) as processes:
                processes.start_serving()
                with Watcher(settings) as watcher:
                    bench = cls(settings, processes, zygote, watcher, seed=seed, first_version=first_version)
                    bench.wait_serving()
                    try:
                        yield bench
                    except BaseException:
                        sys.stderr.write(f"cut off after {bench.tally}\n{bench.last_words()}\n")
                        raise
                    finally:
                        bench.client.close()
                        bench.context.engine.dispose()
        finally:
            tempfile.tempdir = None
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before

    def last_words(self) -> str:
        """Ends of the logs, and what working files there are."""
        logs = [self.settings.home / "logs" / name for name in ("worker.log", "serving.log")]
        ends = ["\n".join(log.read_text(errors="replace").splitlines()[-25:]) for log in logs if log.exists()]
        return "\n".join([*ends, *map(str, self.settings.runs_folder.rglob("*"))])

    def carry_on(self, scenario: Callable[..., None], *args: Any, **options: Any) -> None:
        """Do something to the service; if it comes to no end that is a violation, and the next one is not tried."""
        if self.is_stuck:
            return
        try:
            scenario(*args, **options)
        except (AssertionError, httpx.HTTPError) as error:
            self.is_stuck = True
            place = ", ".join(str(each) for each in args if isinstance(each, str | tuple | float))
            self.tally.violations.append(f"{scenario.__name__}({place}) came to no end: {error}")

    # --- processes

    def start_worker(self, fail_at: str = "", **extra: str) -> int:
        """Start a worker that dies at a fail point, or at none. Its wall clock is the file `clock`, see `zygote`."""
        extra.setdefault("FAULTS_CLOCK", str(self.clock))
        self.worker = self._start(fail_at, "worker.log", **extra)
        return self.worker

    def start_command(self, *words: str, fail_at: str = "") -> int:
        """Start a command of `expunge` on this home, which may die at a fail point; gives its process id."""
        return self._start(fail_at, "commands.log", *words)

    def _start(self, fail_at: str, log: str, *words: str, **extra: str) -> int:
        given = {**environment(self.settings), **extra}
        given.pop("EXPUNGE_FAIL_AT", None)
        if fail_at:
            (self.settings.home / f"failed-at-{fail_at}").unlink(missing_ok=True)
            given["EXPUNGE_FAIL_AT"] = fail_at
        return self.zygote.start(given, self.settings.home / "logs" / log, words)

    def expunge(self, *words: str) -> tuple[int | None, str]:
        """Run a command of `expunge` that needs no home; gives its status and what it said."""
        log = self.settings.home.parent / "said.log"
        log.unlink(missing_ok=True)
        status = self.zygote.wait(self.zygote.start(dict(os.environ), log, words), RUN_SECONDS)
        return status, log.read_text()

    def has_ended(self, pid: int) -> bool:
        """Whether a worker or a command ended."""
        return self.zygote.status(pid) is not None

    def kill_worker(self, place: str) -> None:
        """SIGKILL to the worker, wherever it is."""
        assert self.worker is not None
        with suppress(ProcessLookupError):
            os.kill(self.worker, signal.SIGKILL)
        self.zygote.wait(self.worker, 20)
        self.tally.kills[place] += 1

    def stop_worker(self) -> None:
        """SIGTERM; it ends within the step it is in, or is killed."""
        if self.worker is not None:
            self.zygote.stop(self.worker)

    def stop_all(self) -> None:
        """End worker and serving processes, so that nobody has a file of the home open."""
        self.stop_worker()
        if self.processes.serving is not None:
            stop(self.processes.serving, patience_seconds=10)
        self.context.engine.dispose()

    def api_workers(self) -> list[int]:
        """Process ids of the serving processes that live."""
        with reading(self.context.engine) as s:
            rows = s.exec(select(ServingWorker)).all()
        return [row.pid for row in rows if is_alive(row.pid)]

    def kill_api(self, place: str, n: int = 1) -> None:
        """SIGKILL to some serving processes; BentoML's arbiter starts them anew within ten seconds."""
        alive = self.api_workers()
        for pid in self.rng.sample(alive, min(n, len(alive))):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.tally.kills[place] += 1
            self.is_short = True

    def wait_serving(self, n: int | None = None, seconds: float = 240.0) -> None:
        """Until so many serving processes, or all, live and answer with a model."""
        wanted = self.settings.api_workers if n is None else n

        def ready() -> bool:
            with reading(self.context.engine) as s:
                rows = s.exec(select(ServingWorker).where(ServingWorker.acknowledged_generation >= 1)).all()
            return sum(is_alive(row.pid) for row in rows) >= wanted

        self.until(ready, f"{wanted} serving processes", seconds)
        self.is_short = self.is_short and n is not None

    # --- requests

    def next_person(self) -> Person:
        """Somebody who was not asked for yet."""
        return person_of(self.settings, self._left.pop(), SIZE)

    def people_left(self) -> list[str]:
        """User ids of people nobody asked for yet."""
        return list(self._left)

    def try_to_file(self, person: Person) -> bool:
        """File a request once, without counting on an answer; whether it was accepted."""
        with suppress(httpx.TransportError):
            return self.client.post("/v1/erasure-requests", json={"user_ids": [person.user_id]}).status_code == 202
        return False

    def file(self, *persons: Person, after: Callable[[], None] | None = None) -> list[str]:
        """File requests, once whatever happens: the call is repeated under its key until it is answered."""
        key, ids = str(uuid4()), [person.user_id for person in persons]
        patience = Patience(RUN_SECONDS)
        while True:
            with suppress(httpx.TransportError):
                answer = self.client.post(
                    "/v1/erasure-requests", json={"user_ids": ids}, headers={"Idempotency-Key": key}
                )
                if answer.status_code == 202:
                    break
                if answer.status_code != 503:
                    self.tally.violations.append(f"filing answered {answer.status_code}")
            assert not patience.is_over(), "Expected the filing to be answered."
            self.tally.repeated_calls += 1
            time.sleep(0.1)
        if after is not None:
            after()
        receipts = [receipt["id"] for receipt in answer.json()["requests"]]
        self.tally.accepted += len(receipts)
        self.filed |= dict(zip(receipts, persons, strict=True))
        return receipts

    def request(self, request_id: str) -> dict[str, Any]:
        """The request as its client sees it, as soon as somebody answers."""
        patience = Patience(RUN_SECONDS)
        while not patience.is_over():
            with suppress(httpx.TransportError):
                answer = self.client.get(f"/v1/erasure-requests/{request_id}")
                if answer.status_code == 200:
                    return dict(answer.json())
            time.sleep(0.1)
        raise AssertionError("Expected an answer about the request.")

    def ended(self, request_id: str) -> bool:
        return self.request(request_id)["state"] in OPEN_ENDS

    def until(self, condition: Callable[[], bool], what: str, seconds: float = RUN_SECONDS) -> None:
        """Wait for something."""
        patience = Patience(seconds)
        while not condition():
            assert not patience.is_over(), f"Expected {what} within {seconds:.0f} s."
            time.sleep(0.05)

    # --- a request's life

    def die_at(self, point: str, request_ids: list[str]) -> bool:
        """Start a worker that dies at the point; False if the requests ended without reaching it."""
        worker = self.start_worker(fail_at=point)
        patience = Patience(RUN_SECONDS)
        while (status := self.zygote.status(worker)) is None:
            assert not patience.is_over(), f"Expected the worker to die at {point} or to end the request."
            if self.is_idle() and all(map(self.ended, request_ids)):
                if (status := self.zygote.wait(worker, GRACE_SECONDS)) is not None:
                    break
                self.stop_worker()
                return False
            time.sleep(0.02)
        if status != -signal.SIGKILL:
            self.tally.violations.append(f"the worker ended with status {status} before {point}")
            return False
        self.tally.kills[f"worker at {point}"] += 1
        return True

    def is_idle(self) -> bool:
        """Whether nothing of a run is left to do: its working files are gone last but one."""
        runs = self.settings.runs_folder  # the cheap look first: it is asked all the time
        return not runs.exists() or not any(runs.iterdir())

    def ensure_worker(self) -> None:
        """What a supervisor does: a worker that ended is started."""
        if self.worker is None or self.zygote.status(self.worker) is not None:
            self.start_worker()

    def finish(self, request_ids: list[str], *, supervised: bool = False) -> None:
        """Let a worker finish in peace, then check everything; supervised it may end and is started again."""
        self.ensure_worker()

        def finished() -> bool:
            if supervised:
                self.ensure_worker()
            return self.is_idle() and all(map(self.ended, request_ids))

        self.until(finished, "the requests to end")
        if self.is_short:
            self.unserved |= set(request_ids)
        self.wait_serving(1)
        filed = {request_id: self.filed[request_id] for request_id in request_ids}
        violations = check_completed(self.settings, filed)
        with reading(self.context.engine) as s:
            newest = max((row.acknowledged_generation for row in s.exec(select(ServingWorker))), default=0)
        self.watcher.require(newest)
        self.erased += filed.values()
        patience = Patience(RUN_SECONDS)  # the last page is scrubbed moments after the request is completed
        while (left := self.left_of(filed.values())) and not patience.is_over():
            time.sleep(0.1)
        violations += left + self.check_service()
        self.completed |= {each for each in request_ids if self.request(each)["state"] == "completed"}
        self.tally.completed = len(self.completed)
        self.tally.violations += violations

    def complete(self, request_ids: list[str], *, most_approvals: int | None = None) -> None:
        """What a supervisor and an operator do once a fault is over, then everything is checked.

        A worker that ended is started, what needs attention is approved. `most_approvals`: how often the operator may
        have to approve one request; none: as often as it takes.
        """
        approvals: Counter[str] = Counter()

        def ended() -> bool:
            self.ensure_worker()
            states = {request_id: self.request(request_id)["state"] for request_id in request_ids}
            for request_id, state in states.items():
                if state == "needs_attention":
                    approvals[request_id] += self.approve(request_id)
            return all(state == "completed" for state in states.values())

        self.until(ended, "the requests to be completed once the fault is over")
        if most_approvals is not None and max(approvals.values(), default=0) > most_approvals:
            self.tally.violations.append(
                f"a request had to be approved {max(approvals.values())} times, expected at most {most_approvals}"
            )
        self.finish(request_ids, supervised=True)

    def approve(self, request_id: str) -> bool:
        """Approve a request over HTTP; whether it was."""
        with suppress(httpx.TransportError):
            answer = self.client.post(
                f"/v1/erasure-requests/{request_id}/approve", json={"reason": "The fault is over."}
            )
            self.tally.approved += answer.is_success
            return answer.is_success
        return False

    def nothing_ends(self, request_ids: list[str], what: str, seconds: float = 4.0, *, supervised: bool = True) -> None:
        """Let a worker meet a fault for so long, or until it asks for help: none of the requests may be completed."""
        patience, before = Patience(seconds), {each: self.request(each)["state"] for each in request_ids}
        while not patience.is_over():
            if supervised:
                self.ensure_worker()
            states = {request_id: self.request(request_id) for request_id in request_ids}
            for request_id, request in states.items():
                if request["state"] == "completed" != before[request_id]:
                    self.tally.violations.append(f"a request was completed as {request['outcome']} while {what}")
                    return
                if request["state"] in ("cancelled", "rejected"):
                    self.tally.violations.append(f"a request was {request['state']} while {what}")
            if all(request["state"] == "needs_attention" for request in states.values()):
                return
            time.sleep(0.05)

    def let_work(self, request_ids: list[str], seconds: float) -> None:
        """Let the worker work for so long, or until the requests ended."""
        self.pass_time(seconds, lambda: all(map(self.ended, request_ids)))

    def pass_time(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let a fault last for so long, or until something is so."""
        patience = Patience(seconds)
        while not patience.is_over() and not until():
            time.sleep(0.02)

    def answering(self, n: int = 4) -> set[str]:
        """Weights that answer just now."""
        return {self.watcher.ask_once(self.client) for _ in range(n)} - {""}

    def check_service(self) -> list[str]:
        """Whether the weights of the latest erasure's certificate are those that answer."""
        with reading(self.context.engine) as s:
            query = select(CertificateRecord).where(CertificateRecord.verdict == "PASSED")
            rows = s.exec(query.order_by(col(CertificateRecord.log_index).desc()).limit(1)).all()
        certified = {
            json.loads(base64.b64decode(row.envelope["envelope"]["payload"]))["subject"][0]["digest"]["sha256"]
            for row in rows
        }  # fmt: skip
        if certified and (others := self.answering() - certified - self.trained):
            return [f"weights {digest[:12]} answer, the latest certificate is about others" for digest in others]
        return []

    def left_of(self, persons: Collection[Person]) -> list[str]:
        """Where something of these people is found that must be nowhere."""
        found = found_in(self.places(), persons) + self.also_searched(persons)
        return [f"a person's data in {name}" for name in found]

    def places(self) -> list[Path]:
        """Folders that the service writes to."""
        return [self.settings.home, self.settings.home.parent / "tmp"]

    def conclude(self) -> Tally:
        """The checks over the whole time: everybody erased so far, every answer, request and certificate."""
        self.wait_serving(1)
        self.tally.violations += self.left_of(self.erased)
        self.tally.violations += check_answers(self.settings, self.watcher.answers, self.first_version, self.trained)
        self.tally.violations += check_completed(self.settings, self.filed)
        self.tally.violations += check_history(
            self.settings, self.filed, first_version=self.first_version, first_data=self.first_data,
            trained=self.trained, changed_data=self.changed_data, unserved=self.unserved,
            expunge=self.expunge,
        )  # fmt: skip
        n_listed, cursor = 0, None
        while True:
            page = (
                self.client.get("/v1/erasure-requests", params={"cursor": cursor} if cursor else {})
                .raise_for_status()
                .json()
            )
            n_listed, cursor = n_listed + len(page["requests"]), page["next_cursor"]
            if cursor is None:
                break
        if n_listed != self.tally.accepted:
            self.tally.violations.append(f"{self.tally.accepted} requests were accepted, {n_listed} are listed")
        self.tally.n_predictions = self.watcher.answers.statuses.total()
        return self.tally


def memory_folder() -> Path:
    """Where homes lie: a killed process loses nothing that the kernel holds, so memory will do and is quick."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def first_version_of(settings: Settings) -> str:
    """Digest of the weights a new home starts with."""
    (file,) = settings.models_folder.iterdir()
    return file.stem
