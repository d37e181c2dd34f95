"""The object store fails: at the start of a run, in the middle, in the purge.

Nothing may be completed whose purge the store did not carry out. Once the store is well again the request is completed,
and then the store holds the weights in service, banks without the person, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from tests.faults.bench import Bench
from tests.faults.watch import Person
from tests.object_store import FaultyStore

POINTS: Final = (
    "",  # before a worker has looked
    "unlearning.references_built",
    "deploying.start",
    "purging.start",
    "purging.marked",
)
HARMLESS: Final = frozenset({"slow"})


def watch_store(bench: Bench, store: FaultyStore) -> None:
    """From now on the store is searched for people, too, and for other weights than those in service."""

    def search(persons: Collection[Person]) -> list[str]:
        objects = store.objects()
        needles = [needle for person in persons for needle in person.needles]
        found = [f"the store's {name.partition('/')[0]}" for name, content in objects.items()
                 if any(needle in content or needle in name.encode() for needle in needles)]  # fmt: skip
        weights = {name for name in objects if name.endswith(".safetensors")}
        serving = {name for name in weights if any(digest in name for digest in bench.answering())}
        return found + ["weights that the store keeps"] * len(weights - serving)

    bench.also_searched = search


def store_fails(bench: Bench, store: FaultyStore, point: str, fault: str, seconds: float = 4.0) -> None:
    """The store fails when a worker goes on from the point, until some seconds later or until help is asked for."""
    request_ids = bench.file(bench.next_person())
    if point and not bench.die_at(point, request_ids):
        bench.tally.violations.append(f"the run never passed {point}")
    with store.failing(fault):
        bench.start_worker()
        if fault in HARMLESS:
            bench.let_work(request_ids, seconds)
        else:
            bench.nothing_ends(request_ids, f"the object store was {fault}", seconds)
        bench.stop_worker()
    bench.tally.kills[f"object store {fault}"] += 1
    bench.complete(request_ids, most_approvals=1)
    bench.stop_worker()
