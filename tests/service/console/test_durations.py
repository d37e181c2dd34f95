"""Histograms from the legal record, beside the same counted row by row."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlmodel import col, select

from service.console.durations import Durations, request_durations, stage_durations
from service.context import Context
from service.keys.api_keys import SCOPES, Client
from service.requests import intake, states
from service.requests.schemas import Filing
from service.store.engine import reading, session
from service.store.tables import ErasureRequest, RequestEvent
from service.telemetry.catalog import LONG

pytestmark = pytest.mark.both_databases

CLIENT = Client("client", "client", frozenset(SCOPES))
WAY = ("unlearning", "auditing", "unlearning", "auditing", "deploying", "purging", "completed")


def counted(seconds: dict[str, list[float]]) -> Durations:
    """The naive histogram."""
    return {
        label: ([sum(each <= bound for each in values) for bound in LONG] + [len(values)], sum(values))
        for label, values in seconds.items()
    }


def naive_stages(context: Context) -> Durations:
    stays: dict[str, list[float]] = defaultdict(list)
    with reading(context.engine) as s:
        for request_id in s.exec(select(ErasureRequest.id)):
            query = select(RequestEvent).where(RequestEvent.request_id == request_id).order_by(col(RequestEvent.id))
            moves = [event for event in s.exec(query) if event.from_state != event.to_state]
            for entered, left in pairwise(moves):
                stays[entered.to_state].append((left.at - entered.at).total_seconds())
    return counted(stays)


def naive_requests(context: Context) -> Durations:
    took: dict[str, list[float]] = defaultdict(list)
    with reading(context.engine) as s:
        for request in s.exec(select(ErasureRequest)):
            if request.completed_at is not None:
                took[str(request.outcome)].append((request.completed_at - request.filed_at).total_seconds())
    return counted(took)


def check(found: Durations, naive: Durations) -> None:
    assert found.keys() == naive.keys()
    for label, (counts, total) in naive.items():
        assert found[label][0] == counts, label
        assert found[label][1] == pytest.approx(total, abs=0.01)


def test_an_empty_record_has_no_histograms(context: Context) -> None:
    with reading(context.engine) as s:
        assert request_durations(s) == {}
        assert stage_durations(s) == {}


def test_they_are_those_of_the_naive_count(context: Context, clock: Any) -> None:
    """Thirty requests on ways of random length at random times, some annotated on the way, some sent back."""
    rng = random.Random(11)
    for number in range(30):
        filing = Filing(user_ids=[f"person-{number}"])
        (receipt,) = intake.file_requests(context, CLIENT, filing, n_subjects=lambda: 1000, most_open=1000).requests
        n_moves = rng.randrange(len(WAY) + 1)
        for to_state in WAY[:n_moves]:
            clock.advance(seconds=rng.choice([0.2, 3, 40, 700, 90_000, 3_000_000]) * rng.random())
            with session(context.engine) as s:
                request = s.get_one(ErasureRequest, receipt.id)
                if rng.random() < 0.3:
                    due = request.due_at + timedelta(days=1)
                    states.annotate(s, request, now=clock(), note="extended", due_at=due)
                    clock.advance(seconds=5)
                ended = {"outcome": rng.choice(states.OUTCOMES)} if to_state == "completed" else {}
                states.move(s, request, to_state, now=clock(), **ended)
                s.commit()
        if 0 < n_moves < len(WAY) and rng.random() < 0.5:
            with session(context.engine) as s:
                request = s.get_one(ErasureRequest, receipt.id)
                states.move(s, request, "needs_attention", now=clock.advance(hours=3), attention_reason="asked")
                states.move(s, request, "queued", now=clock.advance(days=2))
                s.commit()
    with reading(context.engine) as s:
        requests, stages = request_durations(s), stage_durations(s)
    assert {"queued", "unlearning", "auditing", "needs_attention"} <= stages.keys()
    check(stages, naive_stages(context))
    check(requests, naive_requests(context))
