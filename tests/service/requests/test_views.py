from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import col, select

from audit.proof import log
from audit.proof.envelope import public_keys_pem
from service.api import models, proofs
from service.context import Context
from service.errors import InvalidInputError, NotFoundError
from service.keys.api_keys import ADMIN, AUDIT, READ, Client
from service.requests import states, views
from service.requests.intake import file_requests
from service.requests.schemas import Filing
from service.requests.views import RequestFilter
from service.store import ledger
from service.store.engine import reading, session
from service.store.tables import CertificateRecord, Deployment, ErasureRequest, ModelVersion, ServingWorker

pytestmark = pytest.mark.both_databases

Person = Callable[..., Client]


def file(context: Context, client: Client, *ids: str, **fields: Any) -> list[str]:
    filing = Filing(user_ids=list(ids), **fields)
    filed = file_requests(context, client, filing, n_subjects=lambda: 4000, most_open=2000)
    return [receipt.id for receipt in filed.requests]


def listed(context: Context, client: Client, **wanted: Any) -> list[str]:
    """Ids of all pages."""
    found, cursor = [], None
    while True:
        page = views.request_page(context, client, RequestFilter(**wanted, cursor=cursor))
        found += [request.id for request in page.requests]
        assert len(page.requests) <= wanted.get("limit", 50)
        cursor = page.next_cursor
        if cursor is None:
            return found


@pytest.fixture
def some(context: Context, clock: Any, person: Person) -> dict[str, list[str]]:
    """Requests of two clients, a minute apart: a batch of seven of `a`, then one of `b`, then one of `a`."""
    made = {"batch": file(context, person("a"), *(f"p{n}" for n in range(7)))}
    clock.advance(minutes=1)
    made["b"] = file(context, person("b"), "q")
    clock.advance(minutes=1)
    made["a"] = file(context, person("a"), "r")
    return made


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 200])
def test_pages_give_each_request_once_newest_first(
    context: Context, some: dict[str, list[str]], person: Person, limit: int
) -> None:
    everything = [*some["a"], *some["b"], *some["batch"]]
    assert listed(context, person("x", AUDIT), limit=limit) == everything
    assert listed(context, person("x", ADMIN), limit=limit) == everything
    assert listed(context, person("a"), limit=limit) == [*some["a"], *some["batch"]]
    assert listed(context, person("b"), limit=limit) == some["b"]
    assert listed(context, person("c"), limit=limit) == []


def test_a_page_is_not_moved_by_newer_requests(
    context: Context, clock: Any, some: dict[str, list[str]], person: Person
) -> None:
    first = views.request_page(context, person("a"), RequestFilter(limit=3))
    clock.advance(minutes=1)
    file(context, person("a"), "new")
    rest = views.request_page(context, person("a"), RequestFilter(limit=200, cursor=first.next_cursor))
    assert [each.id for each in (*first.requests, *rest.requests)] == [*some["a"], *some["batch"]]


def test_the_last_filed_comes_first_though_it_was_received_long_ago(
    context: Context, clock: Any, some: dict[str, list[str]], person: Person
) -> None:
    clock.advance(minutes=1)
    late = file(context, person("a"), "late", received_at=clock() - timedelta(days=90))
    assert listed(context, person("a"), limit=1) == [*late, *some["a"], *some["batch"]]


def test_filters(context: Context, clock: Any, some: dict[str, list[str]], person: Person) -> None:
    auditor = person("x", AUDIT)
    batch_id = some["batch"][0].rpartition("-")[0]
    assert listed(context, auditor, batch_id=batch_id) == some["batch"]
    assert listed(context, person("b"), batch_id=batch_id) == []
    for nothing in ("%", "_" * 36, "x'y", batch_id[:-1]):
        assert listed(context, auditor, batch_id=nothing) == []
    with session(context.engine) as s:
        request = s.get(ErasureRequest, some["b"][0])
        assert request is not None
        states.move(s, request, "unlearning", now=clock())
        due = request.due_at
        s.commit()
    assert listed(context, auditor, state=["unlearning"]) == some["b"]
    assert listed(context, auditor, state=["unlearning", "queued"], limit=2) == [
        *some["a"],
        *some["b"],
        *some["batch"],
    ]
    assert listed(context, auditor, due_before=due.isoformat()) == some["batch"]


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", "e30=", "WzEsMl0=", "W10=", base64.urlsafe_b64encode(b'["2026-01-01T00:00:00", "a"]').decode(),
     base64.urlsafe_b64encode(b'["0001-01-01T00:00:00+14:00", "a"]').decode(),
     base64.urlsafe_b64encode(b'["2026-01-01T00:00:00+00:00", "a\\u0000"]').decode(),
     base64.urlsafe_b64encode(b"[" * 300).decode()],
)  # fmt: skip
def test_made_up_cursors_are_refused(context: Context, person: Person, cursor: str) -> None:
    with pytest.raises(InvalidInputError, match="next_cursor"):
        views.request_page(context, person(), RequestFilter(cursor=cursor))


def test_a_client_sees_its_own_and_its_own_only(context: Context, some: dict[str, list[str]], person: Person) -> None:
    (request_id,) = some["b"]
    mine = views.request_detail(context, person("b"), request_id)
    assert mine.commitment_salt is not None
    assert mine.cancellable
    everybody = views.request_detail(context, person("x", AUDIT), request_id)
    assert everybody.commitment_salt is None
    assert not everybody.cancellable
    for other in (request_id + "x", "nothing", "a" * 200, "\x00", "'"):
        with pytest.raises(NotFoundError) as absent:
            views.request_detail(context, person("b"), other)
        with pytest.raises(NotFoundError) as foreign:
            views.request_detail(context, person("a"), request_id)
        assert absent.value.detail == foreign.value.detail


def test_a_link_to_another_client_s_request_is_not_shown(context: Context, clock: Any, person: Person) -> None:
    (first,) = file(context, person("a"), "s31")
    clock.advance(seconds=1)
    (second,) = file(context, person("b"), "s31")
    assert views.request_detail(context, person("b"), second).linked_request_id is None
    assert views.request_detail(context, person("x", AUDIT), second).linked_request_id == first


def test_overdue_and_cancellable_follow_the_clock(context: Context, clock: Any, person: Person) -> None:
    (request_id,) = file(context, person(), "s31")

    def flags() -> tuple[bool, bool]:
        view = views.request_detail(context, person(), request_id)
        return view.cancellable, view.overdue

    assert flags() == (True, False)
    clock.advance(seconds=3600)
    assert flags() == (False, False)
    clock.advance(days=28)
    assert flags() == (False, True)


def test_certificates_go_to_those_they_speak_for(context: Context, clock: Any, person: Person) -> None:
    (leader,) = file(context, person("a"), "s31")
    clock.advance(seconds=1)
    (follower,) = file(context, person("b"), "s31")
    content = {"envelope": {"payload": "x"}, "log": {"index": 0}, "public_key_pem": "pem"}
    with session(context.engine) as s:
        certificate = CertificateRecord(
            id="cert", run_id="r", request_id=leader, verdict="PASSED", envelope=content, log_index=0,
            created_at=clock(),
        )  # fmt: skip
        s.add(certificate)
        request = s.get(ErasureRequest, leader)
        assert request is not None
        s.commit()
    with pytest.raises(NotFoundError, match="queued"):
        proofs.request_certificate(context, person("a"), leader)
    with session(context.engine) as s:
        for step in ("unlearning", "purging"):
            states.move(s, request, step, now=clock())
        states.move(s, request, "completed", now=clock(), outcome="erased", certificate_id="cert")
        s.commit()
    for client, request_id in ((person("a"), leader), (person("b"), follower), (person("x", AUDIT), leader)):
        assert proofs.certificate_file(context, client, "cert") == content
        assert proofs.request_certificate(context, client, request_id) == content
    for client, certificate_id in ((person("c"), "cert"), (person("a"), "other"), (person("x", AUDIT), "\x00")):
        with pytest.raises(NotFoundError):
            proofs.certificate_file(context, client, certificate_id)


def test_the_log_s_proofs_verify(context: Context, clock: Any) -> None:
    with session(context.engine) as s:
        for number in range(7):
            ledger.record(s, "policy", now=clock(), number=number)
        s.commit()
    public = [context.keyring.public_key]
    head = log.verify_checkpoint(proofs.checkpoint(context), public)
    assert head is not None
    assert head.size == 7
    entries = proofs.log_entries(context, 0, 100)
    assert entries.tree_size == 7
    assert [each.index for each in proofs.log_entries(context, 5, 1).entries] == [5]
    for size in (None, 1, 4, 7):
        for entry in entries.entries[: size or 7]:
            assert log.leaf_hash(entry.entry.encode()).hex() == entry.leaf_hash
            proof = proofs.inclusion(context, entry.index, size)
            tree = log.verify_checkpoint(proof.checkpoint, public)
            assert tree is not None
            assert tree.size == proof.tree_size == (size or 7)
            hashes = [base64.b64decode(node) for node in proof.hashes]
            assert log.verify_inclusion(entry.index, tree.size, bytes.fromhex(entry.leaf_hash), hashes, tree.root)
    for first in range(1, 8):
        early = log.verify_checkpoint(proofs.consistency(context, first, first).checkpoint, public)
        proof = proofs.consistency(context, first, None)
        assert early is not None
        hashes = [base64.b64decode(node) for node in proof.hashes]
        assert log.verify_consistency(first, 7, hashes, early.root, head.root)


def test_proofs_of_what_is_not_there_are_refused(context: Context) -> None:
    for prove in (
        lambda: proofs.inclusion(context, 0, None),
        lambda: proofs.inclusion(context, 0, 5),
        lambda: proofs.consistency(context, 1, None),
        lambda: proofs.consistency(context, 0, 1),
    ):
        with pytest.raises(InvalidInputError):
            prove()


def test_public_keys_verify_what_the_service_signs(context: Context) -> None:
    (key,) = proofs.public_keys(context).keys
    assert key.pem == public_keys_pem([context.keyring.public_key])
    assert len(key.key_id) == 64


def test_models_and_who_serves_them(context: Context, clock: Any) -> None:
    now = clock()
    with session(context.engine) as s:
        for number, state in enumerate(("destroyed", "active")):
            s.add(
                ModelVersion(
                    digest=f"d{number}", line="default", state=state, generation=number, manifest={"seed": 1},
                    signature="s", created_at=now, destroyed_at=now if number == 0 else None,
                )
            )  # fmt: skip
        s.add(Deployment(line="default", committed_generation=1, committed_digest="d1", updated_at=now))
        for boot_id, seconds in (("fresh", 3), ("stale", 0)):
            s.add(
                ServingWorker(
                    boot_id=boot_id, line="default", host="h", pid=1, expected=2, acknowledged_generation=1,
                    acknowledged_at=now, started_at=now, heartbeat_at=now,
                    lease_until=now.replace(second=seconds),
                )
            )  # fmt: skip
        s.commit()
    found = models.models(context)
    assert {model.digest: model.state for model in found.models} == {"d0": "destroyed", "d1": "active"}
    (line,) = found.lines
    assert (line.committed_generation, line.committed_digest) == (1, "d1")
    assert {each.boot_id: each.lease_is_fresh for each in line.serving} == {"fresh": True, "stale": False}


def test_reading_writes_nothing(context: Context, some: dict[str, list[str]], person: Person) -> None:
    with reading(context.engine) as s:
        before = [row.model_dump() for row in s.exec(select(ErasureRequest).order_by(col(ErasureRequest.id)))]
    views.request_page(context, person("x", AUDIT), RequestFilter())
    views.request_detail(context, person("a", READ), some["a"][0])
    with reading(context.engine) as s:
        assert before == [row.model_dump() for row in s.exec(select(ErasureRequest).order_by(col(ErasureRequest.id)))]
