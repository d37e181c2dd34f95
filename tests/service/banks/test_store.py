"""The bank store under kills, corruption and company, and the traces of people who were dropped."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from service.banks import store as bank_store
from service.banks.store import Bank, BankKey, BankStore, ReferenceRow, ReferencesError
from tests.waiting import PATIENCE_SECONDS, wait_until

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEY = BankKey("recipe", "1.0", "train", "test")
EXAMPLES = tuple(f"example-{i}" for i in range(6))
TAGS = ("anna", "anna", "bert", "bert", "bert", "cleo")


def row_of(seed: int, examples: tuple[str, ...] = EXAMPLES) -> ReferenceRow:
    """Same seed, same content; anna's margins are a recognisable bit pattern."""
    margins = np.random.default_rng(seed).normal(size=len(examples)).astype(np.float32)
    margins[:2] = ANNAS_MARGIN
    return ReferenceRow(seed, examples, margins, 0.99, 0.92, 1.5)


ANNAS_MARGIN = np.frombuffer(b"ANNA", dtype="<f4")[0]


def store_with(folder: Path, n_rows: int, *, key: BankKey = KEY, n_wanted: int = 5) -> BankStore:
    store = BankStore(folder)
    store.begin(key, example_ids=EXAMPLES, subject_tags=TAGS, n_wanted=n_wanted, now=NOW)
    for seed in range(n_rows):
        store.add(key, row_of(seed))
    return store


def found(store: BankStore, key: BankKey = KEY, n_models: int = 5) -> Bank:
    bank = store.find(key, n_models=n_models)
    assert bank is not None
    return bank


def row_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.row"))


def all_bytes(folder: Path) -> bytes:
    return b"\0".join(str(p).encode() + p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


def test_a_bank_is_found_once_complete(tmp_path: Path) -> None:
    store = store_with(tmp_path / "banks", 4)
    assert store.find(KEY, n_models=5) is None
    assert store.missing_seeds(KEY, 5) == (4,)
    assert store.add(KEY, row_of(4))
    bank = found(store)
    assert bank.margins.dtype == np.float32
    np.testing.assert_array_equal(bank.margins, np.stack([row_of(seed).margins for seed in range(5)]))
    assert bank.seeds.tolist() == [0, 1, 2, 3, 4]
    assert bank.retain_accuracy.tolist() == [0.99] * 5
    assert bank.test_accuracy.tolist() == [0.92] * 5
    assert bank.seconds.tolist() == [1.5] * 5
    assert bank.example_ids == EXAMPLES
    assert bank.subject_tags == TAGS
    assert bank.columns(["example-3", "example-0"]).tolist() == [3, 0]
    with pytest.raises(ReferencesError, match="example-9"):
        bank.columns(["example-9"])


@pytest.mark.parametrize("field", [field.name for field in fields(BankKey)])
def test_any_difference_of_the_key_is_a_miss(tmp_path: Path, field: str) -> None:
    store = store_with(tmp_path, 5)
    other = replace(KEY, **{field: "something else"})
    assert other.digest != KEY.digest
    assert store.find(other, n_models=1) is None
    assert store.missing_seeds(other, 2) == (0, 1)


def test_looking_into_an_empty_store(tmp_path: Path) -> None:
    store = BankStore(tmp_path / "absent")
    assert store.find(KEY, n_models=1) is None
    assert store.status(now=NOW) == ()
    assert store.drop_subject("anna") == 0


def test_more_models_may_be_wanted_later(tmp_path: Path) -> None:
    store = store_with(tmp_path, 5)
    store.begin(KEY, example_ids=EXAMPLES[:2], subject_tags=TAGS[:2], n_wanted=6, now=NOW + timedelta(days=1))
    store.begin(KEY, example_ids=EXAMPLES, subject_tags=TAGS, n_wanted=2, now=NOW)  # never lowered
    (status,) = store.status(now=NOW)
    assert (status.n_models, status.n_wanted) == (5, 6)
    assert store.find(KEY, n_models=6) is None
    assert found(store).margins.shape == (5, 6)  # for whoever needs no more, whatever it was begun for
    store.add(KEY, row_of(5))
    assert found(store, n_models=6).margins.shape == found(store).margins.shape == (6, 6)


def test_the_first_row_of_a_seed_stays(tmp_path: Path) -> None:
    store = store_with(tmp_path, 5)
    assert not store.add(KEY, replace(row_of(2), margins=np.zeros(6, np.float32)))
    np.testing.assert_array_equal(found(store).margins[2], row_of(2).margins)


@pytest.mark.parametrize(
    ("break_it", "what"),
    [
        (lambda data: data[:-1], "cut off"),
        (lambda data: b"", "empty"),
        (lambda data: data + b"\0", "longer"),
        (lambda data: data[:150] + bytes([data[150] ^ 1]) + data[151:], "one bit"),
        (lambda data: data[:8] + bytes(32) + data[40:], "another key"),
    ],
)
def test_a_damaged_row_is_missing_and_replaced(tmp_path: Path, break_it: Callable[[bytes], bytes], what: str) -> None:
    store = store_with(tmp_path, 5)
    (path,) = tmp_path.rglob("3.row")
    path.write_bytes(break_it(path.read_bytes()))
    assert store.find(KEY, n_models=5) is None, what
    assert store.missing_seeds(KEY, 5) == (3,)
    assert store.add(KEY, row_of(3))
    np.testing.assert_array_equal(found(store).margins[3], row_of(3).margins)


def test_a_row_of_another_bank_is_missing(tmp_path: Path) -> None:
    store = store_with(tmp_path, 5)
    other = replace(KEY, recipe_digest="other")
    store_with(tmp_path, 5, key=other)
    mine, theirs = (next((tmp_path / key.digest).rglob("3.row")) for key in (KEY, other))
    mine.write_bytes(theirs.read_bytes())
    assert store.missing_seeds(KEY, 5) == (3,)


@pytest.mark.parametrize("text", [b"", b"\n", b"{}", b"0" * 64 + b"\n{}"])
def test_a_damaged_manifest_is_a_missing_bank(tmp_path: Path, text: bytes) -> None:
    store = store_with(tmp_path, 5)
    (tmp_path / KEY.digest / "manifest").write_bytes(text)
    assert store.find(KEY, n_models=5) is None
    assert store.missing_seeds(KEY, 2) == (0, 1)
    assert store.status(now=NOW) == ()
    store_with(tmp_path, 5)
    assert found(store).margins.shape == (5, 6)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1)
    refused = [
        (lambda: store.add(replace(KEY, statistic="loss"), row_of(0)), "begun before"),
        (lambda: store.add(KEY, replace(row_of(1), margins=np.zeros(5))), "shape"),
        (lambda: store.add(KEY, replace(row_of(1), margins=np.full(6, np.nan))), "diverge"),
        (lambda: store.add(KEY, replace(row_of(1), test_accuracy=float("nan"))), "diverge"),
        (lambda: store.add(KEY, replace(row_of(1), seed=-1)), "seed >= 0"),
        (lambda: store.add(KEY, row_of(1, EXAMPLES[:5])), "lacks examples"),
        (lambda: store.begin(KEY, example_ids=["new"], subject_tags=["x"], n_wanted=1, now=NOW), "no column for 1"),
        (lambda: store.begin(KEY, example_ids=["a", "a"], subject_tags=["x", "x"], n_wanted=1, now=NOW), "different"),
        (lambda: store.begin(KEY, example_ids=["a"], subject_tags=[], n_wanted=1, now=NOW), "one subject tag"),
        (lambda: store.begin(KEY, example_ids=["a"], subject_tags=["x"], n_wanted=0, now=NOW), "n_wanted"),
    ]
    for call, sentence in refused:
        with pytest.raises(ReferencesError, match=sentence):
            call()


def test_dropping_a_person_leaves_the_others(tmp_path: Path) -> None:
    store = store_with(tmp_path, 5)
    before = found(store)
    assert b"ANNA" in all_bytes(tmp_path)
    assert b"anna" in all_bytes(tmp_path)
    assert store.drop_subject("anna") == 2
    left = all_bytes(tmp_path)
    assert not any(trace in left for trace in (b"ANNA", b"anna", b"example-0", b"example-1"))
    bank = found(store)
    np.testing.assert_array_equal(bank.margins, before.margins[:, 2:])
    assert bank.example_ids == EXAMPLES[2:]
    assert bank.seeds.tolist() == [0, 1, 2, 3, 4]
    assert store.drop_subject("anna") == 0
    assert store.drop_subject("bert") == 3
    assert store.drop_subject("cleo") == 1
    assert store.find(KEY, n_models=5) is None
    assert store.status(now=NOW) == ()
    assert not (tmp_path / KEY.digest).exists()


def test_dropped_bytes_are_overwritten_not_only_unlinked(tmp_path: Path) -> None:
    store = store_with(tmp_path, 2)
    handles = [path.open("rb") for path in [*row_files(tmp_path), tmp_path / KEY.digest / "manifest"]]
    store.drop_subject("anna")
    for handle in handles:
        with handle:
            assert set(handle.read()) == {0}


def test_a_model_trained_before_the_drop_is_stored_without_the_columns(tmp_path: Path) -> None:
    store = store_with(tmp_path, 4)
    store.drop_subject("anna")
    assert store.add(KEY, row_of(4))
    np.testing.assert_array_equal(found(store).margins[4], row_of(4).margins[2:])
    assert b"ANNA" not in all_bytes(tmp_path)


def test_a_damaged_row_and_an_unreadable_manifest_do_not_outlive_a_drop(tmp_path: Path) -> None:
    store = store_with(tmp_path, 3)
    (path,) = tmp_path.rglob("1.row")
    path.write_bytes(path.read_bytes()[:-3])
    other = replace(KEY, recipe_digest="other")
    store_with(tmp_path, 3, key=other)
    (tmp_path / other.digest / "manifest").write_bytes(b"{")
    store.drop_subject("anna")
    assert b"ANNA" not in all_bytes(tmp_path)
    assert store.missing_seeds(KEY, 3) == (1,)
    assert not (tmp_path / other.digest).exists()


class Killed(BaseException):
    """Stands for SIGKILL at one system call."""


@pytest.mark.parametrize("tag", ["anna", "everyone"])
def test_a_drop_killed_at_any_step_is_finished_by_the_next(
    tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops the drop at its first system call that changes the disk, then at its second, … until it gets through."""
    tags = TAGS if tag == "anna" else ("everyone",) * 6
    calls = 0
    for stop_at in range(1, 200):
        folder = tmp_path / str(stop_at)
        store = BankStore(folder)
        store.begin(KEY, example_ids=EXAMPLES, subject_tags=tags, n_wanted=2, now=NOW)
        for seed in range(2):
            store.add(KEY, row_of(seed))
        calls = 0

        def counting(call: Callable[..., object], stop_at: int = stop_at) -> Callable[..., object]:
            def counted(*args: object, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if calls >= stop_at:  # and every later one, so that no clean-up runs either
                    raise Killed
                return call(*args, **kwargs)

            return counted

        with monkeypatch.context() as patch:
            for name in ("link", "unlink", "rename", "replace", "fsync", "mkdir", "rmdir"):
                patch.setattr(os, name, counting(getattr(os, name)))
            with suppress(Killed):
                store.drop_subject(tag)
        fresh = BankStore(folder)
        fresh.drop_subject(tag)
        assert b"ANNA" not in all_bytes(folder), stop_at
        assert tag.encode() not in all_bytes(folder), stop_at
        assert not [p for p in folder.rglob("*") if p.name.endswith((".tmp", ".old"))], stop_at
        if tag == "anna":
            np.testing.assert_array_equal(
                found(fresh, n_models=2).margins, np.stack([row_of(s).margins[2:] for s in range(2)])
            )
        else:
            assert not (folder / KEY.digest).exists()
        if calls < stop_at:
            break
    assert 8 < calls < stop_at


MANY = tuple(f"example-{i}" for i in range(500))


def many_row(seed: int) -> ReferenceRow:
    return ReferenceRow(seed, MANY, np.random.default_rng(seed).normal(size=500).astype(np.float32), 0.9, 0.8, 1.0)


N_MANY = 600  # models: two builders are not done before the first of them is killed


def build_many_models(folder: Path) -> None:
    store = BankStore(folder)
    store.begin(KEY, example_ids=MANY, subject_tags=MANY, n_wanted=N_MANY, now=NOW)
    for seed in store.missing_seeds(KEY, N_MANY):
        store.add(KEY, many_row(seed))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_builders_killed_by_sigkill_lose_no_finished_model(tmp_path: Path) -> None:
    """Two builders at a time on one bank, killed wherever they are; every whole row stays, none is wrong."""
    store, chance, processes = BankStore(tmp_path), random.Random(0), multiprocessing.get_context("fork")
    n_kept = n_interrupted = 0
    for _ in range(1000):
        builders = [processes.Process(target=build_many_models, args=(tmp_path,)) for _ in range(2)]
        for builder in builders:
            builder.start()
        n_more = chance.choice((0, 1, 5, 20))

        def have_more(n=n_kept + n_more, builders=tuple(builders)) -> bool:
            return len(row_files(tmp_path)) >= n or not any(builder.is_alive() for builder in builders)

        wait_until(have_more, f"{n_more} more models")
        for builder in builders:
            builder.kill()
            builder.join(PATIENCE_SECONDS)
        n_interrupted += any(builder.exitcode == -signal.SIGKILL for builder in builders)
        n_there = N_MANY - len(store.missing_seeds(KEY, N_MANY))
        assert n_there >= n_kept
        n_kept = n_there
        if n_kept == N_MANY or (n_interrupted >= 5 and n_kept):
            break
    else:
        pytest.fail(f"Expected the bank to grow between kills, it has {n_kept} of {N_MANY} models.")
    assert n_interrupted
    build_many_models(tmp_path)
    expected = np.stack([many_row(seed).margins for seed in range(N_MANY)])
    np.testing.assert_array_equal(found(store).margins, expected)
    store.drop_subject("example-7")
    np.testing.assert_array_equal(found(store).margins, np.delete(expected, 7, axis=1))
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith((".tmp", ".old"))]


def test_builders_readers_and_a_drop_at_once(tmp_path: Path) -> None:
    store = store_with(tmp_path, 0, n_wanted=40)
    dropped = threading.Event()

    def build(first: int) -> None:
        for seed in range(first, 40):
            store.add(KEY, row_of(seed))
            if seed == 20:
                dropped.wait(PATIENCE_SECONDS)

    def read() -> None:
        bank = wait_until(lambda: store.find(KEY, n_models=40), "the whole bank")
        assert bank.margins.shape == (40, 4)

    with ThreadPoolExecutor(8) as pool:
        jobs = [*(pool.submit(build, first) for first in (0, 0, 10)), *(pool.submit(read) for _ in range(3))]
        wait_until(lambda: row_files(tmp_path), "a first model")
        assert store.drop_subject("anna") == 2
        dropped.set()
        for job in jobs:
            job.result(PATIENCE_SECONDS)
    assert b"ANNA" not in all_bytes(tmp_path)


def test_status(tmp_path: Path) -> None:
    store = store_with(tmp_path, 3)
    later = replace(KEY, code_version="2.0")
    store.begin(later, example_ids=EXAMPLES, subject_tags=TAGS, n_wanted=7, now=NOW + timedelta(hours=1))
    first, second = store.status(now=NOW + timedelta(hours=2))
    assert (first.key, first.n_models, first.n_wanted, first.n_examples, first.n_subjects) == (KEY, 3, 5, 6, 3)
    assert first.cost_seconds == 4.5
    assert first.age_seconds == 7200
    assert first.size_bytes == sum(p.stat().st_size for p in (tmp_path / KEY.digest).rglob("*") if p.is_file())
    assert (second.key, second.n_models, second.age_seconds) == (later, 0, 3600)
    store.discard(KEY)
    assert [status.key for status in store.status(now=NOW)] == [later]


def test_large_banks_are_read_once_to_be_found_and_once_to_drop_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BankStore(tmp_path)
    ids = tuple(f"{i:064d}" for i in range(10_000))
    tags = tuple(f"{i // 10:064d}" for i in range(10_000))
    store.begin(KEY, example_ids=ids, subject_tags=tags, n_wanted=16, now=NOW)
    for seed in range(16):
        margins = np.random.default_rng(seed).normal(size=10_000)
        store.add(KEY, ReferenceRow(seed, ids, margins.astype(np.float32), 0.9, 0.8, 1.0))
    calls: Counter[str] = Counter()
    for name in ("decode_row", "encode_row"):
        real = getattr(bank_store, name)
        monkeypatch.setattr(bank_store, name, lambda *args, n=name, f=real: calls.update([n]) or f(*args))
    assert found(store, n_models=16).margins.shape == (16, 10_000)
    assert calls == {"decode_row": 16}
    calls.clear()
    assert store.drop_subject(tags[50]) == 10
    assert calls == {"decode_row": 16, "encode_row": 16}
