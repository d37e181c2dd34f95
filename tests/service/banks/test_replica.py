"""Copies of the banks in the shared storage: they follow every change, and hold nothing of anybody erased."""

from __future__ import annotations

import os
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from sqlmodel import select

from service.banks import replica
from service.banks.store import Bank, BankKey, BankStore, ReferenceRow
from service.context import Context
from service.erasure.completion import purge
from service.errors import StartupError, StorageError
from service.keys import marks
from service.keys.keyring import Keyring
from service.models import destruction, registry
from service.requests.head_count import people_held, write_down
from service.store.engine import reading, session
from service.store.tables import StoredBank, WorkerLease
from tests.service import tiny

KEY = BankKey("recipe", "code", "rows", "tests")
OTHER = replace(KEY, training_digest="other rows")


def machine(context: Context, storage: Path, home: Path | None = None) -> Context:
    """The same service on a machine with the storage, and perhaps with a home of its own."""
    changes = {"storage_url": f"file://{storage}"} | ({"home": home} if home else {})
    return Context(context.settings.model_copy(update=changes), context.engine, context.keyring, now=context.now)


@pytest.fixture
def here(context: Context, tmp_path: Path) -> Context:
    """The worker's machine, with two banks: of Ann and Ben, and of Ann alone."""
    here = machine(context, tmp_path / "bucket")
    for key, people in ((KEY, ("ann", "ben")), (OTHER, ("ann",))):
        store, examples = banks(here), tuple(f"{person}-1" for person in people)
        store.begin(key, example_ids=examples, subject_tags=people, n_wanted=2, now=here.now())
        for seed in range(2):
            margins = np.arange(len(people), dtype=np.float32) + seed
            store.add(key, ReferenceRow(seed, examples, margins, 0.9, 0.8, 1.0))
    (here.settings.banks_folder / "blocks.json").write_text('{"ann": "a", "ben": "a"}')
    return here


def banks(context: Context) -> BankStore:
    return BankStore(context.settings.banks_folder)


def margins(bank: Bank | None) -> list[list[float]]:
    assert bank is not None
    return bank.margins.tolist()


def rows(context: Context) -> dict[str, str]:
    with reading(context.engine) as s:
        return {row.name: row.sha256 for row in s.exec(select(StoredBank))}


def test_another_machine_fetches_banks_and_blocks(here: Context, tmp_path: Path) -> None:
    replica.publish(here)
    replica.publish(here)
    assert len(here.storage.names("banks")) == 3
    there = machine(here, tmp_path / "bucket", tmp_path / "there")
    assert replica.bring_here(there) == 3
    assert replica.bring_here(there) == 0
    assert margins(banks(there).find(KEY, n_models=2)) == margins(banks(here).find(KEY, n_models=2)) == [[0, 1], [1, 2]]
    blocks = [each.settings.banks_folder / "blocks.json" for each in (here, there)]
    assert blocks[0].read_text() == blocks[1].read_text()


def test_an_erasure_reaches_every_copy(here: Context, tmp_path: Path) -> None:
    replica.publish(here)
    before = here.storage.names("banks")
    banks(here).drop_subjects(["ann"])
    replica.follow_erasure(here)
    after = here.storage.names("banks")
    assert len(after) == 2  # the bank of Ann alone is gone
    assert {name for name in before if KEY.digest in name}.isdisjoint(after)
    assert set(rows(here)) == {KEY.digest, "blocks.json"}
    (name,) = (name for name in after if KEY.digest in name)
    with tarfile.open(fileobj=BytesIO(here.storage.fetch(name))) as archive:
        assert not any(b"ann" in archive.extractfile(entry).read() for entry in archive.getmembers())
    there = machine(here, tmp_path / "bucket", tmp_path / "there")
    replica.bring_here(there)
    assert margins(banks(there).find(KEY, n_models=2)) == [[1], [2]]
    assert banks(there).find(OTHER, n_models=2) is None


def test_a_copy_that_cannot_be_destroyed_stops_the_purge(here: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    replica.publish(here)
    banks(here).drop_subjects(["ann"])
    monkeypatch.setattr(here.storage._files, "rm_file", lambda path: None)
    with pytest.raises(StorageError, match="still lists"):
        replica.follow_erasure(here)
    monkeypatch.undo()
    replica.follow_erasure(here)
    assert len(here.storage.names("banks")) == 2


def test_a_storage_that_answers_empty_has_destroyed_nothing(here: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    replica.publish(here)
    banks(here).drop_subjects(["ann"])
    with monkeypatch.context() as patched:
        patched.setattr(here.storage._files, "find", lambda path: [])
        with pytest.raises(StorageError, match="it lacks 2"):
            replica.follow_erasure(here)
    replica.follow_erasure(here)
    assert len(here.storage.names("banks")) == 2


def test_a_storage_that_answers_empty_is_not_rid_of_weights(
    tiny_context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = machine(tiny_context, tmp_path / "bucket")
    run_id = tiny.deploy_run(worker, tiny.people(worker)[0])
    base = tiny.run_of(worker, run_id).base_digest
    worker.storage.publish(f"models/{base}.safetensors", b"the model before")
    with monkeypatch.context() as patched:
        patched.setattr(worker.storage._files, "find", lambda path: [])
        with pytest.raises(StorageError, match="the weights in service"):
            destruction.destroy_refused(worker)
    assert registry.get(worker, base).destroyed_at is None
    destruction.destroy_refused(worker)
    assert f"models/{base}.safetensors" not in worker.storage.names("models")


def test_what_a_killed_builder_left_goes_with_the_next_look(here: Context) -> None:
    here.storage.publish(f"banks/{KEY.digest}/{'0' * 64}.tar", b"uploaded, and no row written")
    replica.publish(here)
    assert len(here.storage.names("banks")) == 3


@pytest.mark.parametrize("damage", ["cut", "altered", "gone", "row"])
def test_a_damaged_copy_is_not_taken(here: Context, tmp_path: Path, damage: str) -> None:
    replica.publish(here)
    sha256 = rows(here)[KEY.digest]
    name = f"banks/{KEY.digest}/{sha256}.tar"
    content = here.storage.fetch(name)
    if damage == "row":  # whoever writes the database and the bucket has no key to sign with
        with session(here.engine) as s:
            row = s.get(StoredBank, KEY.digest)
            row.signature = here.keyring.sign(b"something else")
            s.add(row)
            s.commit()
    else:
        here.storage.destroy(name)
    if damage in ("cut", "altered"):
        here.storage.publish(name, content[:-600] if damage == "cut" else b"x" + content[1:])
    there = machine(here, tmp_path / "bucket", tmp_path / "there")
    assert replica.bring_here(there) == 2
    assert banks(there).find(KEY, n_models=2) is None
    assert banks(there).find(OTHER, n_models=2) is not None


def test_without_a_storage_nothing_happens(context: Context) -> None:
    replica.publish(context)
    replica.follow_erasure(context)
    assert replica.bring_here(context) == 0


def test_the_purge_destroys_in_the_storage_before_it_says_so(tiny_context: Context, tmp_path: Path) -> None:
    worker = machine(tiny_context, tmp_path / "bucket")
    gone, stays = tiny.same_block(worker)
    run_id = tiny.deploy_run(worker, gone)
    replica.publish(worker)
    run = tiny.run_of(worker, run_id)
    registry.bring_here(worker, run.base_digest)
    worker.storage.publish(f"models/{run.base_digest}.safetensors", b"the model before")
    (bank,) = (each.key.digest for each in banks(worker).status(now=worker.now()))
    purge(tiny.workspace(worker, run_id))
    assert worker.storage.names("models") == {f"models/{run.candidate_digest}.safetensors"}
    assert worker.storage.names("banks") == {f"banks/{name}/{sha}.tar" for name, sha in rows(worker).items()}
    there = machine(worker, tmp_path / "bucket", tmp_path / "there")
    replica.bring_here(there)
    (status,) = banks(there).status(now=worker.now())
    assert status.key.digest == bank
    assert status.subject_tags == {worker.keyring.block_hash(stays)}
    assert worker.keyring.block_hash(gone) not in (there.settings.banks_folder / "blocks.json").read_text()


def test_a_home_with_other_keys_does_not_open_the_database(context: Context, tmp_path: Path) -> None:
    marks.compare(context.engine, context.keyring)
    marks.compare(context.engine, Keyring.open(context.settings.keys_folder))
    with pytest.raises(StartupError, match=r"got another block\.key, rerun\.key, tombstone\.key: bring the folder"):
        marks.compare(context.engine, Keyring.open(tmp_path / "other"))
    os.rename(tmp_path / "other" / "block.key", context.settings.keys_folder / "block.key")
    with pytest.raises(StartupError, match=r"another block\.key:"):
        marks.compare(context.engine, Keyring.open(context.settings.keys_folder))


def test_a_machine_without_data_counts_as_the_worker_did(tiny_context: Context, tmp_path: Path) -> None:
    there = machine(tiny_context, tmp_path / "bucket", tmp_path / "there")
    write_down(tiny_context)  # no worker yet: nobody to write it to
    assert people_held(there) == 0
    with session(tiny_context.engine) as s:
        now = tiny_context.now()
        s.add(WorkerLease(line="default", holder="h", host="h", pid=1, fencing_token=1, heartbeat_at=now,
                          lease_until=now))  # fmt: skip
        s.commit()
    write_down(tiny_context)
    assert people_held(there) == people_held(tiny_context) == 50
    (tiny_context.settings.data_folder / "metadata.csv").write_text("nonsense")
    write_down(tiny_context)
    assert people_held(there) == 50
