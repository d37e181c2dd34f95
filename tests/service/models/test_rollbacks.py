"""Going back to an older version: only where nobody was erased since, and only by the worker's two-phase swap."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from starlette.testclient import TestClient

from service.context import LINE, Context
from service.errors import ConflictError, NotFoundError
from service.keys.api_keys import ADMIN, Client
from service.models import deployment, destruction, registry, rollbacks
from service.models.rollbacks import RollbackRefusedError, carry_out, order
from service.requests import states
from service.requests.intake import file_requests
from service.requests.schemas import Filing
from service.store.engine import reading, session
from service.store.process_marks import this_host
from service.store.tables import (
    Deployment,
    ErasureRequest,
    LogLeaf,
    ModelVersion,
    OpenLine,
    RollbackOrder,
    ServingWorker,
)
from tests.service.versions import add_version

pytestmark = pytest.mark.both_databases

OPERATOR = Client("operator", "operator", frozenset({ADMIN}))
Check = Callable[..., dict[str, Any]]


@pytest.fixture
def older(context: Context) -> str:
    """The first of two versions that were put into service one after the other."""
    first, second = add_version(context, 0), add_version(context, 1)
    deployment.activate_first(context, first)
    deployment.deploy(context, second)
    return first


def erase_somebody(context: Context, clock: Any) -> None:
    """A request that ends as `erased`; what the pipeline does to the models is left out."""
    client = Client("c", "c", frozenset())
    filing = Filing(user_ids=["s31"])
    (receipt,) = file_requests(context, client, filing, n_subjects=lambda: 40, most_open=9).requests
    clock.advance(minutes=1)
    with session(context.engine) as s:
        request = s.get_one(ErasureRequest, receipt.id)
        for step in ("unlearning", "purging"):
            states.move(s, request, step, now=clock())
        states.move(s, request, "completed", now=clock(), outcome="erased")
        s.commit()


def entries(context: Context) -> list[dict[str, Any]]:
    with reading(context.engine) as s:
        return [json.loads(leaf.entry) for leaf in s.exec(select(LogLeaf).order_by(col(LogLeaf.index)))]


def serving(context: Context, acknowledged: int) -> None:
    """A serving process of this machine that stays at a generation."""
    now = context.now()
    with session(context.engine) as s:
        row = ServingWorker(
            boot_id="a", line=LINE, host=this_host(), pid=os.getpid(), expected=1, staged_generation=acknowledged,
            acknowledged_generation=acknowledged, started_at=datetime.now(UTC), heartbeat_at=now,
            lease_until=now + timedelta(hours=1),
        )  # fmt: skip
        s.merge(row)
        s.commit()


def test_an_order_is_carried_out_by_the_worker_and_logged(context: Context, older: str) -> None:
    placed = order(context, OPERATOR, older, "Worse on the night shift.")
    pointer = deployment.pointer(context)
    assert pointer is not None
    assert (placed.state, pointer.committed_generation) == ("ordered", 2)  # the API changes nothing itself
    done = carry_out(context)
    assert done is not None
    assert (done.state, done.generation, done.id) == ("done", 3, placed.id)
    pointer = deployment.pointer(context)
    assert pointer is not None
    assert (pointer.committed_generation, pointer.committed_digest) == (3, older)
    (entry,) = entries(context)
    assert entry == {
        "kind": "rollback", "at": context.now().isoformat(), "rollback_id": placed.id, "end": "done", "weights": older,
        "from_weights": placed.from_digest, "generation": 3, "n_processes": 0, "ordered_by": "operator",
    }  # fmt: skip
    assert done.log_index == 0
    assert carry_out(context) is None


def test_one_may_go_back_again(context: Context, older: str) -> None:
    newer = order(context, OPERATOR, older, "Because.").from_digest
    carry_out(context)
    order(context, OPERATOR, newer, "It was not the model.")
    done = carry_out(context)
    assert done is not None
    assert (done.state, done.generation) == ("done", 4)


def test_the_same_order_is_one_and_another_waits(context: Context, older: str) -> None:
    first = order(context, OPERATOR, older, "Because.")
    assert order(context, OPERATOR, older, "Again.").id == first.id
    third = add_version(context, 2)
    with pytest.raises(ConflictError, match=f"order {first.id} is"):
        order(context, OPERATOR, third, "Because.")


def test_two_orders_written_at_once_are_one(context: Context, older: str) -> None:
    """Both saw none open: the index lets one of them in."""
    first = order(context, OPERATOR, older, "Because.")
    with session(context.engine) as s:
        s.add(RollbackOrder(**{**first.model_dump(), "id": "another"}))
        with pytest.raises(IntegrityError):
            s.flush()


def test_what_is_not_there_in_service_or_never_was(context: Context, older: str) -> None:
    candidate = add_version(context, 2)
    pointer = deployment.pointer(context)
    assert pointer is not None
    with pytest.raises(NotFoundError):
        order(context, OPERATOR, "0" * 64, "Because.")
    with pytest.raises(RollbackRefusedError, match="this one is in service"):
        order(context, OPERATOR, pointer.committed_digest, "Because.")
    with pytest.raises(RollbackRefusedError, match="never was, and only the audit"):
        order(context, OPERATOR, candidate, "Because.")


def test_nothing_comes_back_from_before_an_erasure(context: Context, clock: Any, older: str) -> None:
    erase_somebody(context, clock)
    with pytest.raises(RollbackRefusedError, match=r"1 request\(s\) completed since"):
        order(context, OPERATOR, older, "Because.")
    newer = add_version(context, 2)
    clock.advance(minutes=1)
    with session(context.engine) as s:  # made after the erasure, so free of that person
        row = s.get_one(ModelVersion, newer)
        row.created_at = clock()
        s.add(row)
        s.commit()
    deployment.deploy(context, newer)
    deployment.deploy(context, add_version(context, 3))
    order(context, OPERATOR, newer, "Because.")
    done = carry_out(context)
    assert done is not None
    assert done.state == "done"


def test_nothing_comes_back_below_the_floor_or_destroyed(context: Context, older: str) -> None:
    with session(context.engine) as s:
        pointer = s.get_one(Deployment, LINE)
        pointer.oldest_allowed_generation = 2
        s.add(pointer)
        s.commit()
    with pytest.raises(RollbackRefusedError, match="Expected generation 2 or later, this one has 1"):
        order(context, OPERATOR, older, "Because.")
    destruction.destroy_older_than(context, 2)
    with pytest.raises(RollbackRefusedError, match="destroyed and cannot come back"):
        order(context, OPERATOR, older, "Because.")


def test_an_order_that_an_erasure_overtakes_is_refused(context: Context, clock: Any, older: str) -> None:
    order(context, OPERATOR, older, "Because.")
    erase_somebody(context, clock)
    refused = carry_out(context)
    assert refused is not None
    assert refused.state == "refused"
    assert "completed since" in refused.note
    pointer = deployment.pointer(context)
    assert pointer is not None
    assert pointer.committed_generation == 2
    assert [entry["end"] for entry in entries(context)] == ["refused"]


def test_an_open_run_comes_first(context: Context, older: str) -> None:
    order(context, OPERATOR, older, "Because.")
    with session(context.engine) as s:
        s.add(OpenLine(line=LINE, run_id="r"))
        s.commit()
    assert carry_out(context) is None
    third = add_version(context, 2)
    with pytest.raises(ConflictError):
        order(context, OPERATOR, third, "Because.")
    with session(context.engine) as s:
        s.delete(s.get_one(RollbackOrder, order(context, OPERATOR, older, "Because.").id))
        s.commit()
    with pytest.raises(ConflictError, match="no erasure under way"):
        order(context, OPERATOR, older, "Because.")


def test_missing_or_altered_weights_are_refused(context: Context, older: str) -> None:
    file = registry.path(context.settings, older)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    order(context, OPERATOR, older, "Because.")
    refused = carry_out(context)
    assert refused is not None
    assert refused.state == "refused"
    assert "SHA-256" in refused.note
    file.unlink()
    with pytest.raises(RollbackRefusedError, match="restore them from a backup"):
        order(context, OPERATOR, older, "Because.")


def test_processes_that_cannot_swap_end_the_order_and_keep_what_serves(
    contexts: Callable[..., Any], settings: Any, clock: Any
) -> None:
    hasty = settings.model_copy(update={"swap_timeout_seconds": 0.05})
    with contexts(hasty, clock) as context:
        first, second = add_version(context, 0), add_version(context, 1)
        deployment.activate_first(context, first)
        deployment.deploy(context, second)
        serving(context, acknowledged=2)
        order(context, OPERATOR, first, "Because.")
        refused = carry_out(context)
        assert refused is not None
        assert refused.state == "refused"
        assert "Expected every serving process to load" in refused.note
        pointer = deployment.pointer(context)
        assert pointer is not None
        assert (pointer.committed_digest, pointer.staging_digest) == (second, None)


def test_a_swap_that_was_committed_is_waited_for_after_a_kill(
    contexts: Callable[..., Any], settings: Any, clock: Any
) -> None:
    hasty = settings.model_copy(update={"swap_timeout_seconds": 0.05})
    with contexts(hasty, clock) as context:
        first, second = add_version(context, 0), add_version(context, 1)
        deployment.activate_first(context, first)
        deployment.deploy(context, second)
        placed = order(context, OPERATOR, first, "Because.")
        deployment.commit(context, deployment.stage(context, first))  # and here the worker was killed
        serving(context, acknowledged=2)
        waiting = carry_out(context)
        assert waiting is not None
        assert (waiting.state, entries(context)) == ("ordered", [])
        assert "Expected every serving process" in waiting.note
        serving(context, acknowledged=3)
        done = carry_out(context)
        assert done is not None
        assert (done.id, done.state, done.generation) == (placed.id, "done", 3)


def test_over_http(context: Context, client: TestClient, older: str, assert_problem: Check) -> None:
    shown = {each["digest"]: each["rollback_refusal"] for each in client.get("/models").json()["models"]}
    assert shown[older] is None
    (active,) = (digest for digest in shown if digest != older)
    assert "in service" in shown[active]
    problem = assert_problem(client.post(f"/models/{active}/rollback", json={"reason": "Because."}), 409)
    assert problem["title"] == "Rollback refused"
    assert_problem(client.post("/models/nothing/rollback", json={"reason": "Because."}), 404)
    assert_problem(client.post(f"/models/{older}/rollback", json={}), 422)
    answer = client.post(f"/models/{older}/rollback", json={"reason": "Because."})
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/rollbacks/{answer.json()['id']}"
    assert client.get(answer.headers["location"]).json() == answer.json()
    carry_out(context)
    done = client.get(answer.headers["location"]).json()
    assert (done["state"], done["generation"], done["log_index"]) == ("done", 3, 0)
    assert client.get("/rollbacks").json() == {"rollbacks": [done]}
    assert_problem(client.get("/rollbacks/nothing"), 404)
    assert answer.json()["state"] == rollbacks.ORDERED
