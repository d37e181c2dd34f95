"""The request API against a model of it that fits in the head, over random calls, moves of a run and crashes.

The model is the naive twin of `states`, `intake` and `decisions`: a list of requests and plain loops. After every step
the service's whole view, its database and the model must agree. A crash drops every connection, with a transaction
begun and not ended, and goes on with a new process's view of the same database.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlmodel import col, select

from audit.policy import load_policy
from service.api.routes import create_api
from service.context import LINE, Context
from service.keys import api_keys
from service.requests import runs, states
from service.requests.intake import LEGAL_HOLD, MASS_DELETION
from service.settings import Settings
from service.store.engine import reading, session
from service.store.tables import ErasureRequest, OpenLine, RequestEvent, Tombstone
from service.worker import claim
from tests.service.conftest import START, Clock, TestClient, open_context

pytestmark = pytest.mark.both_databases

PEOPLE = tuple(f"person-{n}" for n in range(4))
CLIENTS = ("a", "b")
N_SUBJECTS = 10  # three people in one call are more than a fifth
HOLD = timedelta(hours=1)
POLICY = load_policy("standard")
EFFORT = int(os.environ.get("EXPUNGE_FUZZ", "1"))  # `make fuzz-api` asks for more
PHASES = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # a failure is short enough to read as it is
STAGES = ("unlearning", "auditing", "deploying", "purging", "completed")


@dataclass(eq=False)
class Twin:
    """What the model knows of a request."""

    id: str
    client: str
    person: str
    state: str
    reason: str | None
    received: datetime
    due: datetime
    legal_hold: bool = False
    leader: Twin | None = None
    extended: bool = False
    was_destroying: bool = False
    history: list[str] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return self.state not in ("completed", "cancelled", "rejected")


class Model:
    """All requests, and the run that is open."""

    def __init__(self) -> None:
        self.requests: list[Twin] = []
        self.run: list[Twin] | None = None

    def followers(self, leader: Twin) -> list[Twin]:
        return [each for each in self.requests if each.leader is leader and each.is_open]

    def leader_of(self, person: str) -> Twin | None:
        found = [each for each in self.requests if each.person == person and each.is_open and each.leader is None]
        assert len(found) <= 1
        return found[0] if found else None

    def go(self, request: Twin, state: str, reason: str | None = None) -> None:
        """A leader's move, and that of those who follow it."""
        for each in (request, *self.followers(request)):
            each.state, each.reason = state, reason
            each.was_destroying |= state in ("deploying", "purging")
            each.history.append(state)

    def leave(self, request: Twin, state: str) -> None:
        """A request ends alone: its oldest follower leads."""
        behind = sorted(self.followers(request), key=lambda each: (each.received, each.id))
        request.state = state
        request.reason = request.reason if state == "rejected" else None
        request.history.append(state)
        for each in behind:
            each.leader = None if each is behind[0] else behind[0]
            each.history.append(each.state)

    def settle(self, leader: Twin, held: str | None) -> None:
        if held is None and leader.reason == MASS_DELETION:
            self.go(leader, "queued")
        elif held == LEGAL_HOLD and leader.reason != LEGAL_HOLD and leader.state in ("queued", "needs_attention"):
            if leader.state == "needs_attention":
                self.go(leader, "queued")  # by way of the queue, since its reason changes
            self.go(leader, "needs_attention", LEGAL_HOLD)
            for each in (leader, *self.followers(leader)):
                each.legal_hold = True

    def claimable(self, now: datetime) -> list[Twin]:
        return [
            each
            for each in self.requests
            if each.state == "queued" and each.leader is None and not each.legal_hold and each.received + HOLD <= now
        ]


class Api(RuleBasedStateMachine):
    """Rules are calls of clients, of an admin and of the worker, the passing of time, and crashes."""

    new_settings: Callable[[], Settings]

    @initialize()
    def start(self) -> None:
        self.settings = type(self).new_settings()
        self.clock, self.model, self.numbers = Clock(START), Model(), count()
        self.opened: Any = None
        self.answers: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}
        self.run_id, self.tokens = "", dict[str, str]()
        self.open()
        with session(self.context.engine) as s:
            for name, scopes in (
                {each: [api_keys.WRITE, api_keys.READ] for each in CLIENTS} | {"admin": [api_keys.ADMIN]}
            ).items():
                _, self.tokens[name] = api_keys.create_key(s, name=name, scopes=scopes, now=self.clock(), key_id=name)
            s.commit()

    def open(self) -> None:
        self.opened = open_context(self.settings, self.clock)
        opened: Context = self.opened.__enter__()
        ids = self.numbers
        self.context = Context(opened.settings, opened.engine, opened.keyring, self.clock, lambda: f"id{next(ids):06d}")
        self.http = TestClient(create_api(self.context, n_subjects=lambda: N_SUBJECTS), raise_server_exceptions=True)

    def call(self, who: str, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.tokens[who]}", **options.pop("headers", {})}
        answer = self.http.request(method, path, headers=headers, **options)
        assert answer.status_code < 500, answer.text
        return answer

    @rule(
        who=st.sampled_from(CLIENTS),
        people=st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=3, unique=True),
        legal_hold=st.sampled_from([False, False, False, True]),
        key=st.none() | st.sampled_from(["k1", "k2"]),
    )
    def file(self, who: str, people: list[str], legal_hold: bool, key: str | None) -> None:
        body = {"user_ids": people, "legal_hold": legal_hold}
        headers = {"Idempotency-Key": key} if key else {}
        answer = self.call(who, "POST", "/erasure-requests", json=body, headers=headers)
        before = self.answers.get((who, key)) if key else None
        if before is not None and before[0] != body:
            assert answer.status_code == 422
            return
        assert answer.status_code == 202
        if before is not None:
            assert answer.json()["batch_id"] == before[1]["batch_id"]
            return
        if key:
            self.answers[who, key] = (body, answer.json())
        held = LEGAL_HOLD if legal_hold else MASS_DELETION if len(people) / N_SUBJECTS > 0.2 else None
        leaders = {person: self.model.leader_of(person) for person in people}
        for person, receipt in zip(people, answer.json()["requests"], strict=True):
            if (leader := leaders[person]) is not None:
                self.model.settle(leader, held)
            state = leader.state if leader else "needs_attention" if held else "queued"
            twin = Twin(
                receipt["id"], who, person, state, leader.reason if leader else held, self.clock(),
                datetime.fromisoformat(receipt["due_at"]), legal_hold, leader, history=[state],
            )  # fmt: skip
            self.model.requests.append(twin)
            assert receipt["state"] == state

    def pick(self, data: st.DataObject) -> Twin:
        return data.draw(st.sampled_from(self.model.requests), label="request")

    @precondition(lambda self: self.model.requests)
    @rule(data=st.data(), who=st.sampled_from(CLIENTS))
    def cancel(self, data: st.DataObject, who: str) -> None:
        twin = self.pick(data)
        status = self.call(who, "DELETE", f"/erasure-requests/{twin.id}").status_code
        if twin.client != who:
            assert status == 404
        elif twin.state != "queued" or self.clock() >= twin.received + HOLD:
            assert status == 409
        else:
            assert status == 200
            self.model.leave(twin, "cancelled")

    @precondition(lambda self: self.model.requests)
    @rule(data=st.data())
    def approve(self, data: st.DataObject) -> None:
        twin = self.pick(data)
        status = self.call("admin", "POST", f"/erasure-requests/{twin.id}/approve", json={"reason": "Why."}).status_code
        if twin.state != "needs_attention" or twin.leader is not None:
            assert status == 409
            return
        assert status == 200
        self.model.go(twin, "queued")
        for each in (twin, *self.model.followers(twin)):
            each.legal_hold = False

    @precondition(lambda self: self.model.requests)
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        twin = self.pick(data)
        body = {"legal_reason": "legal_claims", "explanation": "Why."}
        status = self.call("admin", "POST", f"/erasure-requests/{twin.id}/reject", json=body).status_code
        if twin.state not in ("queued", "needs_attention") or twin.was_destroying:
            assert status == 409
        else:
            assert status == 200
            self.model.leave(twin, "rejected")

    @precondition(lambda self: self.model.requests)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        twin = self.pick(data)
        answer = self.call("admin", "POST", f"/erasure-requests/{twin.id}/extend", json={"reason": "Why."})
        if not twin.is_open or twin.extended or self.clock() > twin.due:
            assert answer.status_code == 409
        else:
            assert answer.status_code == 200
            twin.due, twin.extended = datetime.fromisoformat(answer.json()["due_at"]), True
            twin.history.append(twin.state)

    @rule(hours=st.sampled_from([0.5, 1.0, 24.0, 24.0 * 40]))
    def pass_time(self, hours: float) -> None:
        self.clock.advance(hours=hours)

    @rule()
    def worker_claims(self) -> None:
        waiting = self.model.claimable(self.clock())
        run_id = claim(self.context, POLICY)
        assert (run_id is not None) == bool(waiting and self.model.run is None)
        if run_id is not None:
            self.run_id, self.model.run = run_id, waiting
            for twin in waiting:
                self.model.go(twin, "unlearning")

    @precondition(lambda self: self.model.run)
    @rule()
    def run_goes_on(self) -> None:
        run = self.model.run or []
        stage = STAGES[STAGES.index(run[0].state) + 1]
        if stage != "completed":
            runs.advance(self.context, self.run_id, stage)
        else:
            self.complete()
            self.model.run = None
        for twin in run:
            self.model.go(twin, stage)

    def complete(self) -> None:
        with session(self.context.engine) as s:
            for request in runs.requests_of(s, self.run_id):
                states.move(s, request, "completed", now=self.clock(), outcome="erased", certificate_id="c")
            runs.release_line(s, self.run_id)
            s.commit()

    @precondition(lambda self: self.model.run)
    @rule()
    def run_gives_up(self) -> None:
        runs.give_up(self.context, self.run_id, "No step passed.")
        for twin in self.model.run or []:
            followers = self.model.followers(twin)
            if any(each.legal_hold for each in followers):
                self.model.go(twin, "needs_attention", LEGAL_HOLD)
                for each in (twin, *followers):
                    each.legal_hold = True
            else:
                self.model.go(twin, "needs_attention", "No step passed.")
        self.model.run = None

    @rule()
    def crash(self) -> None:
        """Every process dies, one of them in the middle of completing what it has."""
        s = session(self.context.engine)
        for request in s.exec(select(ErasureRequest).where(col(ErasureRequest.state).not_in(states.ENDS))):
            if request.linked_request_id is None and request.state == "queued":
                states.move(s, request, "unlearning", now=self.clock(), run_id="lost")
        s.add(OpenLine(line="another", run_id="lost"))
        s.flush()
        s.connection().invalidate()  # the connection is gone, as if the process were
        s.close()
        self.opened.__exit__(None, None, None)
        self.open()

    @invariant()
    def agree(self) -> None:
        """What the admin is shown, what the clients are shown, the rows, their history and the tombstones."""
        if not hasattr(self, "model"):
            return
        shown = {
            each["id"]: each for each in self.call("admin", "GET", "/erasure-requests?limit=200").json()["requests"]
        }
        expected = {twin.id: (twin.state, twin.reason, twin.leader and twin.leader.id) for twin in self.model.requests}
        found = {id_: (row["state"], row["attention_reason"], row["linked_request_id"]) for id_, row in shown.items()}
        assert {k: v for k, v in found.items() if v[0] not in states.ENDS} == {
            k: v for k, v in expected.items() if v[0] not in states.ENDS
        }
        assert {k: v[0] for k, v in found.items()} == {k: v[0] for k, v in expected.items()}
        for who in CLIENTS:
            mine = self.call(who, "GET", "/erasure-requests?limit=200").json()["requests"]
            assert {each["id"] for each in mine} == {twin.id for twin in self.model.requests if twin.client == who}
        with reading(self.context.engine) as s:
            rows = {row.id: row for row in s.exec(select(ErasureRequest))}
            events = list(s.exec(select(RequestEvent).order_by(col(RequestEvent.id))))
            tombstones = set(s.exec(select(Tombstone.subject_hash)))
            open_line = s.get(OpenLine, LINE)
        assert (open_line is None) == (self.model.run is None)
        hash_of = {person: self.context.keyring.subject_hash(person) for person in PEOPLE}
        for twin in self.model.requests:
            row = rows[twin.id]
            assert row.user_id == (twin.person if twin.is_open else None)
            assert (row.commitment_salt is None) == (not twin.is_open)
            assert row.due_at == twin.due
            moves = [(each.from_state, each.to_state) for each in events if each.request_id == twin.id]
            assert moves[0][0] is None
            assert all(before[1] == after[0] for before, after in pairwise(moves))
            assert _squeezed([to for _, to in moves]) == _squeezed(twin.history)
            assert Counter(to for _, to in moves)["completed"] <= 1
        asked = {hash_of[twin.person] for twin in self.model.requests if twin.state not in ("cancelled", "rejected")}
        assert tombstones == asked

    def teardown(self) -> None:
        if getattr(self, "opened", None) is not None:
            self.opened.__exit__(None, None, None)


def _squeezed(history: list[str]) -> list[str]:
    """A history without repeats."""
    return [state for number, state in enumerate(history) if number == 0 or state != history[number - 1]]


def test_the_api_is_its_model(dialect: str, settings: Settings, clean_database: Callable[[], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        homes = (Path(folder) / str(number) for number in count())

        def new_settings() -> Settings:
            if dialect != "sqlite":
                clean_database()
            return settings.model_copy(update={"home": next(homes), "hold_seconds": HOLD.total_seconds()})

        machine = type("Machine", (Api,), {"new_settings": staticmethod(new_settings)})
        run_state_machine_as_test(
            machine,
            settings=hypothesis.settings(
                max_examples=6 * EFFORT, stateful_step_count=25, deadline=None, derandomize=EFFORT == 1, phases=PHASES,
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
