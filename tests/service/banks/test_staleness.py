"""Banks whose models learned from people who are gone since: when they are found, and what they say."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from audit.staleness import Roster, Staleness
from service.banks.store import BankKey, BankStore, ReferenceRow

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OLD, NEW = BankKey("recipe", "1.0", "train-1", "test"), BankKey("recipe", "1.0", "train-2", "test")
LEARNED = {f"person-{i}": f"rows-{i}" for i in range(20)}
TESTED = {f"tester-{i}": f"rows-{i}" for i in range(10)}


@pytest.fixture
def store(tmp_path: Path) -> BankStore:
    """A bank of three models for anna's two images, trained on twenty people."""
    store = BankStore(tmp_path)
    store.begin(
        OLD, example_ids=["a", "b"], subject_tags=["anna"] * 2, n_wanted=3, now=NOW, learned=LEARNED, tested=TESTED
    )
    for seed in range(3):
        store.add(OLD, ReferenceRow(seed, ("a", "b"), np.full(2, seed, np.float32), 0.9, 0.8, 1.0))
    return store


def without(roster: dict[str, str], *gone: str) -> dict[str, str]:
    return {tag: digest for tag, digest in roster.items() if tag not in gone}


def look(store: BankStore, key: BankKey = NEW, **asked: object) -> tuple[BankKey, Staleness] | None:
    values = {"example_ids": ["a"], "learned": LEARNED, "tested": TESTED, "n_models": 1, "share_max": 1.0, **asked}
    return store.find_stale(key, **values)  # type: ignore[arg-type]


def test_people_who_were_erased_are_counted_and_forgotten(store: BankStore, tmp_path: Path) -> None:
    assert store.drop_subject("person-7") == 0  # no column of the bank is theirs
    assert store.drop_subject("person-7") == 0
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"person-7" not in left
    assert left.count(b" rows-7") == 1  # the tester's
    found = look(store, learned=without(LEARNED, "person-7"))
    assert found == (OLD, Staleness(20, 1, 10, 0))
    assert found[1].share == 1 / 20
    (status,) = store.status(now=NOW)
    assert status.staleness == found[1]


def test_the_old_manifest_is_overwritten(store: BankStore, tmp_path: Path) -> None:
    with (tmp_path / OLD.digest / "manifest").open("rb") as before:
        store.drop_subject("person-7")
        assert set(before.read()) == {0}


def test_the_bar_is_on_the_share_of_people_gone(store: BankStore) -> None:
    for person in ("person-1", "person-2"):
        store.drop_subject(person)
    learned = without(LEARNED, "person-1", "person-2")
    assert look(store, learned=learned, share_max=0.1) is not None
    assert look(store, learned=learned, share_max=0.09) is None


def test_who_waits_counts_as_gone_and_stays_in_the_roster(store: BankStore) -> None:
    learned = without(LEARNED, "person-1")
    assert look(store, learned=learned) is None
    assert look(store, learned=learned, leaving={"person-1"}) == (OLD, Staleness(20, 1, 10, 0))
    assert look(store, learned=learned, leaving={"person-1", "somebody"}) == (OLD, Staleness(20, 1, 10, 0))


def test_testers_who_were_erased_count_by_their_own_share(store: BankStore) -> None:
    store.drop_subject("tester-0")
    found = look(store, replace(NEW, test_digest="fewer"), tested=without(TESTED, "tester-0"))
    assert found == (OLD, Staleness(20, 0, 10, 1))
    assert found[1].share == 0.1
    assert "1 of the 10 they were tested on" in found[1].sentence


@pytest.mark.parametrize(
    "asked",
    [
        {"learned": LEARNED | {"somebody new": "rows"}},
        {"learned": LEARNED | {"person-3": "other images"}},
        {"learned": without(LEARNED, "person-3")},
        {"tested": TESTED | {"tester-3": "other images"}},
        {"tested": without(TESTED, "tester-3")},
        {"example_ids": ["a", "c"]},
        {"n_models": 4},
    ],
)
def test_any_other_difference_is_a_miss(store: BankStore, asked: dict[str, object]) -> None:
    assert look(store) is not None
    assert look(store, **asked) is None


@pytest.mark.parametrize("name", [field.name for field in fields(BankKey)])
def test_only_the_data_may_differ(store: BankStore, name: str) -> None:
    found = look(store, replace(NEW, **{name: "something else"}))
    assert (found is not None) is (name in ("training_digest", "test_digest"))


def test_a_damaged_row_is_not_judged_by(store: BankStore, tmp_path: Path) -> None:
    (path,) = tmp_path.rglob("2.row")
    path.write_bytes(path.read_bytes()[:-1])
    assert look(store, n_models=3) is None
    assert look(store, n_models=2) is not None


def test_the_least_stale_bank_is_taken(store: BankStore) -> None:
    store.drop_subject("person-1")
    learned = without(LEARNED, "person-1")
    between = replace(OLD, training_digest="train-1b")
    store.begin(between, example_ids=["a"], subject_tags=["anna"], n_wanted=1, now=NOW, learned=learned, tested=TESTED)
    store.add(between, ReferenceRow(0, ("a",), np.zeros(1, np.float32), 0.9, 0.8, 1.0))
    for person in ("person-2", "person-3"):
        store.drop_subject(person)
        learned = without(learned, person)
    assert look(store, learned=learned) == (between, Staleness(19, 2, 10, 0))


def test_a_bank_without_rosters_is_never_stale(tmp_path: Path) -> None:
    store = BankStore(tmp_path)
    store.begin(OLD, example_ids=["a"], subject_tags=["anna"], n_wanted=1, now=NOW)
    store.add(OLD, ReferenceRow(0, ("a",), np.zeros(1, np.float32), 0.9, 0.8, 1.0))
    assert look(store, learned={}, tested={}) is None


def test_rosters_survive_their_file() -> None:
    roster = Roster(LEARNED).without("person-4")
    assert Roster.from_dict(roster.to_dict()) == roster
    assert (roster.n_people, roster.n_gone) == (20, 1)
    assert roster.without("nobody") is roster
    assert roster.without("person-1", "person-2", "nobody") == roster.without("person-1").without("person-2")


def test_a_fresh_bank_says_so() -> None:
    assert Staleness().share == Staleness(20, 0, 10, 0).share == 0.0
    assert "trained and tested on the present data" in Staleness(20, 0, 10, 0).sentence
    assert (
        Staleness(20, 1).sentence
        == "Subjects erased since, or waiting for erasure: 1 of the 20 that the reference models were trained on."
    )
