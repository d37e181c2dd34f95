"""The worker's metrics, from rows written by hand."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event

from service.console.metrics import DatabaseCollector, exposition
from service.context import LINE, Context
from service.keys.api_keys import SCOPES, Client
from service.models.shadowing import OTHERS, Figures, to_json
from service.requests import intake, states
from service.requests.schemas import Filing
from service.store.engine import session
from service.store.tables import (
    Attempt,
    CallbackDelivery,
    Deployment,
    ErasureRequest,
    OpenLine,
    ReferenceBlock,
    Run,
    ServingWorker,
    ShadowComparison,
)  # fmt: skip
from service.telemetry.catalog import WORKER
from tests.service.qualified import write_qualification

pytestmark = pytest.mark.both_databases

CLIENT = Client("client", "client", frozenset(SCOPES))
CANARY = "canary-4e1f"

Samples = dict[tuple[str, ...], float]


def samples(collector: DatabaseCollector) -> Samples:
    text = exposition(collector)[0].decode()
    assert CANARY not in text
    families = list(text_string_to_metric_families(text))
    assert {family.name for family in families} == {name.removesuffix("_total") for name in WORKER}
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def file(context: Context, *names: str, **fields: Any) -> list[str]:
    filing = Filing(user_ids=list(names), **fields)
    filed = intake.file_requests(context, CLIENT, filing, n_subjects=lambda: 1000, most_open=1000)
    return [receipt.id for receipt in filed.requests]


def test_of_an_empty_database(context: Context) -> None:
    found = samples(DatabaseCollector(context))
    assert found["expunge_requests", "queued"] == 0
    assert found["expunge_audits_total", "retrain", "FAILED"] == 0  # an increase from nothing would not be seen
    assert found["expunge_active_generation",] == -1
    assert found["expunge_worker_heartbeat_timestamp_seconds",] == 0
    assert not [key for key in found if "deadline" in key[0] or "expunge_run_" in key[0]]


def test_deadlines_and_queue(context: Context, clock: Any) -> None:
    first, _ = file(context, CANARY, "b")
    clock.advance(days=3)
    file(context, "c")
    with session(context.engine) as s:
        states.move(s, s.get_one(ErasureRequest, first), "needs_attention", now=clock(), attention_reason="asked")
        due, received = s.get_one(ErasureRequest, first).due_at, s.get_one(ErasureRequest, first).received_at
        s.commit()
    collector = DatabaseCollector(context)
    found = samples(collector)
    assert (found["expunge_requests", "queued"], found["expunge_requests", "needs_attention"]) == (2, 1)
    assert found["expunge_requests_overdue",] == 0
    assert found["expunge_next_deadline_timestamp_seconds",] == due.timestamp()
    assert found["expunge_oldest_open_request_timestamp_seconds",] == received.timestamp()
    assert found["expunge_stage_duration_seconds_sum", "queued"] == pytest.approx(3 * 86400)
    clock.at = due + timedelta(seconds=1)
    assert samples(collector)["expunge_requests_overdue",] == 2


def test_a_request_received_long_ago_is_overdue_from_its_filing_on(context: Context, clock: Any) -> None:
    received = clock() - timedelta(days=100)
    (request_id,) = file(context, "a", received_at=received)
    found = samples(DatabaseCollector(context))
    assert found["expunge_requests_overdue",] == 1
    assert found["expunge_next_deadline_timestamp_seconds",] < clock().timestamp()
    assert found["expunge_oldest_open_request_timestamp_seconds",] == received.timestamp()
    with session(context.engine) as s:
        request = s.get_one(ErasureRequest, request_id)
        states.move(s, request, "unlearning", now=clock())
        states.move(s, request, "purging", now=clock())
        states.move(s, request, "completed", now=clock.advance(seconds=9), outcome="no_data_held")
        s.commit()
    assert samples(DatabaseCollector(context))["expunge_request_duration_seconds_sum", "no_data_held"] == (
        pytest.approx(9, abs=0.01)
    )


def test_histograms_are_computed_anew_only_after_a_move(context: Context, clock: Any) -> None:
    (request_id,) = file(context, "a")
    collector, asked = DatabaseCollector(context, steady=lambda: clock().timestamp()), list[str]()
    event.listen(context.engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: asked.append(statement))
    for _ in range(3):
        assert "expunge_stage_duration_seconds_count" not in {key[0] for key in samples(collector)}
    assert sum("lag(" in statement.lower() for statement in asked) == 1
    with session(context.engine) as s:
        states.move(s, s.get_one(ErasureRequest, request_id), "unlearning", now=clock.advance(seconds=9))
        s.commit()
    assert samples(collector)["expunge_stage_duration_seconds_sum", "queued"] == pytest.approx(9, abs=0.01)
    assert sum("lag(" in statement.lower() for statement in asked) == 2


def attempt(run_id: str, step: int, verdict: str | None, clock: Any, checks: list[dict[str, Any]]) -> Attempt:
    return Attempt(
        run_id=run_id, step=step, method="retrain" if step else "finetune", seed=step, verdict=verdict,
        figures={"checks": checks} if verdict else {}, started_at=clock(), finished_at=clock() if verdict else None,
    )  # fmt: skip


def test_audits(context: Context, clock: Any) -> None:
    def checks(p: float | None) -> list[dict[str, Any]]:
        return [
            {"name": "bank_size", "value": 40, "bar": 40, "applicable": True},
            {"name": "exchangeability", "value": p, "bar": 0.05, "applicable": True},
            {"name": "forgetting_ratio", "value": None, "bar": 0.5, "applicable": False},
            {"name": "epsilon", "value": "inf", "bar": 1, "applicable": True},
        ]

    with session(context.engine) as s:
        s.add(attempt("r1", 0, "FAILED", clock, checks(0.01)))
        s.add(attempt("r1", 1, "PASSED", clock, checks(0.7)))
        clock.advance(hours=1)
        s.add(attempt("r2", 0, "UNDETERMINED", clock, checks(0.02)))
        s.add(attempt("r2", 1, "FAILED", clock, checks(0.04)))
        s.add(attempt("r3", 0, None, clock, []))  # still running
        s.commit()
    found = samples(DatabaseCollector(context))
    assert found["expunge_audits_total", "finetune", "FAILED"] == 1
    assert found["expunge_audits_total", "retrain", "PASSED"] == 1
    assert found["expunge_audits_since_passed",] == 2
    assert found["expunge_audit_check_value", "exchangeability", "finetune"] == 0.02
    assert found["expunge_audit_check_value", "exchangeability", "retrain"] == 0.04
    assert found["expunge_audit_check_value", "epsilon", "retrain"] == float("inf")
    assert found["expunge_audit_check_bar", "exchangeability", "retrain"] == 0.05
    assert ("expunge_audit_check_value", "forgetting_ratio", "retrain") not in found
    assert ("expunge_audit_check_bar", "forgetting_ratio", "retrain") not in found
    assert ("expunge_audit_check_value", "bank_size", "retrain") not in found
    assert found["expunge_audit_timestamp_seconds", "retrain"] == clock().timestamp()


def test_runs_models_banks_and_callbacks(context: Context, clock: Any) -> None:
    began, now = clock(), clock.advance(minutes=2)
    lease = {"started_at": began, "heartbeat_at": now, "lease_until": now + timedelta(seconds=5)}
    with session(context.engine) as s:
        run = Run(
            id="r", line=LINE, stage="unlearning", base_digest="", policy_digest="", seed=1, created_at=began,
            updated_at=now,
        )  # fmt: skip
        s.add_all([run, OpenLine(line=LINE, run_id="r")])
        s.add(Deployment(line=LINE, committed_generation=4, committed_digest="d", updated_at=now))
        for name, generation in (("a", 4), ("b", 3)):
            s.add(
                ServingWorker(
                    boot_id=name, line=LINE, host="h", pid=1, expected=2, acknowledged_generation=generation, **lease
                )
            )
        for block, state, staleness in (("0", "fresh", 0.0), ("1", "stale", 0.04), ("2", "outdated", 0.5)):
            s.add(
                ReferenceBlock(
                    line=LINE, block=block, state=state, n_people=2, n_models=8, n_wanted=10, staleness=staleness,
                    size_bytes=1000, begun_at=began, updated_at=now,
                )
            )  # fmt: skip
        for status in ("pending", "delivered", "delivered"):
            s.add(CallbackDelivery(request_id="x", url="https://x", body="{}", status=status, created_at=began))
        s.commit()
    found = samples(DatabaseCollector(context))
    assert found["expunge_run_started_timestamp_seconds",] == began.timestamp()
    assert found["expunge_run_progress_timestamp_seconds",] == now.timestamp()
    assert (found["expunge_active_generation",], found["expunge_serving_processes",]) == (4, 2)
    assert found["expunge_serving_processes_behind",] == 1
    assert [found["expunge_bank_blocks", state] for state in ("fresh", "outdated", "missing")] == [1, 1, 0]
    assert (found["expunge_bank_models",], found["expunge_bank_models_wanted",]) == (24, 30)
    assert found["expunge_bank_staleness_ratio",] == 0.04  # the outdated one may not judge
    assert found["expunge_bank_oldest_timestamp_seconds",] == began.timestamp()
    assert found["expunge_bank_size_bytes",] == 3000
    assert (found["expunge_callbacks", "pending"], found["expunge_callbacks", "given_up"]) == (1, 0)
    assert found["expunge_oldest_pending_callback_timestamp_seconds",] == began.timestamp()


def test_histograms_take_a_twentieth_of_the_time_at_most(context: Context, clock: Any) -> None:
    (request_id,) = file(context, "a")
    times = iter([0.0, 4.0, 50.0, 84.0, 84.0])  # computing takes four seconds: not again before the 84th
    collector = DatabaseCollector(context, steady=lambda: next(times))
    samples(collector)
    with session(context.engine) as s:
        states.move(s, s.get_one(ErasureRequest, request_id), "unlearning", now=clock.advance(seconds=9))
        s.commit()
    key = ("expunge_stage_duration_seconds_count", "queued")
    assert key not in samples(collector)
    assert samples(collector)[key] == 1


def test_the_key_is_to_be_rotated_after_so_many_days_of_signing(context: Context) -> None:
    found = samples(DatabaseCollector(context))["expunge_signing_key_rotate_by_timestamp_seconds",]
    began = context.keyring.signing.current().valid_from.timestamp()
    assert found - began == pytest.approx(context.settings.signing_key_days * 86400)


def test_qualifications_of_the_ladder_s_methods(context: Context, clock: Any) -> None:
    names = ("expunge_qualification_passed", "expunge_qualification_expires_timestamp_seconds")
    assert not any(key[0] in names for key in samples(DatabaseCollector(context)))
    write_qualification(context, method="remix", passed=False)
    write_qualification(context, method="dilute")  # in no ladder here
    clock.advance(days=1)
    write_qualification(context, method="remix")
    write_qualification(context, method="random_mask", passed=False)
    clock.advance(days=1)
    write_qualification(context, method="remix", passed=None)  # a result that is not there yet changes nothing
    found = {key: value for key, value in samples(DatabaseCollector(context)).items() if key[0] in names}
    assert found == {
        (names[0], "remix"): 1,
        (names[0], "random_mask"): 0,
        (names[1], "remix"): (clock() - timedelta(days=1) + timedelta(days=180)).timestamp(),
    }


def test_what_the_latest_shadowed_candidate_changed(context: Context, clock: Any) -> None:
    assert ("expunge_shadow_timestamp_seconds",) not in samples(DatabaseCollector(context))
    new = {3: Figures(100, 20, 1, 10.0, (49, 20, 10, 10, 10, 0)), OTHERS: Figures(images=7)}
    with session(context.engine) as s:
        for run_id, counts, ended_at in (
            ("old", {3: Figures(images=50)}, clock()), ("new", new, clock() + timedelta(hours=1)), ("open", {}, None),
        ):  # fmt: skip
            s.add(
                ShadowComparison(
                    run_id=run_id, digest="", share=0.1, counts=to_json(counts), began_at=clock(), ended_at=ended_at
                )
            )
        s.commit()
    found = samples(DatabaseCollector(context))
    assert {key[1:]: value for key, value in found.items() if key[0] == "expunge_shadow_predictions"} == {
        ("3", "all"): 100, ("3", "label_changed"): 20, ("3", "confidence_changed"): 30, ("3", "failed"): 1,
        ("-1", "all"): 7,
    }  # fmt: skip
    assert found["expunge_shadow_timestamp_seconds",] == (clock() + timedelta(hours=1)).timestamp()
