from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram

from service.telemetry.tally import TalliedHistogram, Tally
from tests.waiting import join

BOUNDS = (0.0, 0.1, 1.0, 2.5)


def state_of(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(
    st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(-1, 4), st.just(math.inf), st.just(math.nan)), max_size=30)
)
def test_many_at_once_are_the_same_as_one_by_one(values):
    ours, twin = CollectorRegistry(), CollectorRegistry()
    if values:
        TalliedHistogram("seconds", "Help.", registry=ours, buckets=BOUNDS).observe_all(values)
    else:
        TalliedHistogram("seconds", "Help.", registry=ours, buckets=BOUNDS)
    naive = Histogram("seconds", "Help.", registry=twin, buckets=BOUNDS)
    for value in values:
        naive.observe(value)
    assert state_of(ours) == pytest.approx(state_of(twin), nan_ok=True)


def test_series_with_labels_take_many_too():
    registry = CollectorRegistry()
    histogram = TalliedHistogram("seconds", "Help.", ["route"], registry=registry, buckets=BOUNDS)
    histogram.labels("/a").observe_all([0.5, 3.0])
    assert state_of(registry)["seconds_bucket", "1.0"] == 1


def test_every_observation_is_counted_once_whoever_counts():
    registry = CollectorRegistry()
    counter = Counter("calls", "Help.", registry=registry)
    tally = Tally(TalliedHistogram("seconds", "Help.", registry=registry, buckets=BOUNDS), counter)
    done = threading.Event()

    def note() -> None:
        for _ in range(20_000):
            tally.note(0.5)

    def count() -> None:
        while not done.is_set():
            tally.count()

    noting, counting = [
        [threading.Thread(target=each, daemon=True) for _ in range(n)] for each, n in ((note, 3), (count, 2))
    ]
    for thread in noting + counting:
        thread.start()
    try:
        join(*noting)
    finally:
        done.set()
    join(*counting)
    tally.count()
    found = state_of(registry)
    assert found["calls_total", ""] == found["seconds_count", ""] == found["seconds_bucket", "1.0"] == 60_000
    assert found["seconds_sum", ""] == 30_000
