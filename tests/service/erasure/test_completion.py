from __future__ import annotations

import gc
import json
import os
import weakref
from dataclasses import replace

import pytest
from sqlmodel import select

from audit.proof.certificate import verify
from service.banks.store import BankStore
from service.context import LINE
from service.erasure.completion import complete, purge, tidy
from service.erasure.workspace import RunFolder
from service.errors import RunStoppedError
from service.models import destruction, registry, rosters
from service.requests.runs import advance
from service.store.engine import reading, session
from service.store.tables import OpenLine, RequestEvent, Tombstone
from service.training.spec import open_images
from tests.service import tiny
from tests.service.versions import add_version
from unlearning.faces import read_metadata
from unlearning.faces.dataset import METADATA


@pytest.fixture
def pair(tiny_context):
    """Two people of one block; the first is erased."""
    return tiny.same_block(tiny_context)


@pytest.fixture
def run_id(tiny_context, pair):
    """A run that has put its model into service and is about to destroy."""
    return tiny.deploy_run(tiny_context, pair[0])


@pytest.fixture
def mixed(tiny_context, pair):
    """Such a run with somebody of the test split and somebody unknown in it."""
    return tiny.deploy_run(tiny_context, pair[0], tiny.people(tiny_context, "test")[0], "nobody-we-know")


def finish(context, run_id):
    purge(tiny.workspace(context, run_id))
    complete(tiny.workspace(context, run_id))


def test_the_purge_destroys_images_packs_columns_and_weights(tiny_context, tmp_path, pair, run_id):
    settings, folder = tiny_context.settings, RunFolder(tiny_context.settings, run_id)
    run = tiny.run_of(tiny_context, run_id)
    base = registry.path(settings, run.base_digest)
    packs = list(settings.packed_folder.glob("packed-*/images.npy"))
    assert packs
    doomed = [*tiny.images_of(tiny_context, pair[0]), *packs, base, folder.weights(tiny.RETRAIN)]
    for number, path in enumerate(doomed):
        os.link(path, tmp_path / f"second-name-{number}")  # looks at the same bytes once the first name is gone
    purge(tiny.workspace(tiny_context, run_id))
    for number, path in enumerate(doomed):
        assert not path.exists()
        assert not any((tmp_path / f"second-name-{number}").read_bytes()), path
    assert pair[0] not in {row.user_id for row in read_metadata(settings.data_folder)}
    assert registry.get(tiny_context, run.base_digest).state == "destroyed"
    assert [path.stem for path in settings.models_folder.iterdir()] == [run.candidate_digest]
    gone, stays = (tiny_context.keyring.block_hash(person) for person in pair)
    (status,) = BankStore(settings.banks_folder).status(now=tiny_context.now())
    bank = BankStore(settings.banks_folder).find(status.key, n_models=4)
    assert set(bank.subject_tags) == {stays}
    assert gone not in (settings.banks_folder / "blocks.json").read_text()
    assert stays in (settings.banks_folder / "blocks.json").read_text()


def test_the_purge_destroys_packs_of_a_home_that_was_moved(tiny_context, run_id):
    """Its data folder says where its packs were before."""
    settings = tiny_context.settings
    record = settings.data_folder / ".packed" / "elsewhere.txt"
    record.write_text(record.read_text().replace(str(settings.home.resolve()), "/where/it/was"))
    assert list(settings.packed_folder.glob("packed-*"))
    purge(tiny.workspace(tiny_context, run_id))
    assert list(settings.packed_folder.glob("packed-*")) == []


def test_the_purge_leaves_everybody_else_alone(tiny_context, pair, run_id):
    def others():
        rows = read_metadata(tiny_context.settings.data_folder)
        return {row.file_name: (tiny_context.settings.data_folder / row.file_name).read_bytes()
                for row in rows if row.user_id != pair[0]}  # fmt: skip

    before = others()
    purge(tiny.workspace(tiny_context, run_id))
    assert others() == before
    assert len(before) == 49 * tiny.N_IMAGES


def test_purging_again_changes_nothing(tiny_context, clock, run_id):
    purge(tiny.workspace(tiny_context, run_id))
    before = tiny.run_of(tiny_context, run_id).purge
    clock.advance(seconds=1)
    purge(tiny.workspace(tiny_context, run_id))
    assert tiny.run_of(tiny_context, run_id).purge == before


def test_the_purge_destroys_versions_whose_people_nobody_knows(tiny_context, run_id):
    """One that was never deployed, from before people were written down with what learned from them."""
    unknown = add_version(tiny_context, 1)
    finish(tiny_context, run_id)
    assert registry.get(tiny_context, unknown).destroyed_at is not None
    assert not registry.path(tiny_context.settings, unknown).exists()
    destroyed = verify(tiny.certificates(tiny_context)[0].envelope).statement["predicate"]["purge"]["destroyed"]
    assert destroyed["older model versions"] == 2


def test_an_older_version_goes_with_whoever_of_the_batch_it_remembers(tiny_context):
    """The model in service learned from neither, so nothing else destroys what came before it."""
    first, second = tiny.people(tiny_context, "test")[:2]
    run_id = tiny.plan_run(tiny_context, first, second)
    older = add_version(tiny_context, 1)
    with session(tiny_context.engine) as s:
        rosters.write(s, older, {tiny_context.keyring.subject_hash(second): 3})
        s.commit()
    advance(tiny_context, run_id, "purging")
    finish(tiny_context, run_id)
    assert not registry.path(tiny_context.settings, older).exists()
    destroyed = {
        record.request_id: verify(record.envelope).statement["predicate"]["purge"]["destroyed"]
        for record in tiny.certificates(tiny_context)
    }
    counts = [destroyed[request.id]["older model versions"] for request in tiny.requests(tiny_context)]
    assert counts == [0, 1]


def test_the_purge_looks_for_weights_that_a_backup_brought_back(tiny_context, run_id):
    earlier = add_version(tiny_context, 1)
    path = registry.path(tiny_context.settings, earlier)
    content = path.read_bytes()
    destruction.destroy(tiny_context, earlier)
    path.write_bytes(content)
    purge(tiny.workspace(tiny_context, run_id))
    assert not path.exists()


def test_the_purge_keeps_no_image_in_memory(tiny_context, run_id):
    faces = tiny.workspace(tiny_context, run_id).faces
    held = weakref.ref(faces)
    del faces
    purge(tiny.workspace(tiny_context, run_id))
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("kept", [True, False])
def test_reports_of_the_audit_stay_only_where_evidence_is_kept(tiny_context, run_id, kept):
    settings = tiny_context.settings.model_copy(update={"keep_evidence": kept})
    purge(tiny.workspace(replace(tiny_context, settings=settings), run_id))
    assert settings.reports_folder.exists() is kept


def test_the_erased_person_is_in_no_later_plan(tiny_context, pair, run_id):
    finish(tiny_context, run_id)
    plan = tiny.plan_for(tiny_context, pair[1])
    faces = open_images(plan.spec.images)
    assert pair[0] not in faces.subjects


def test_completion_certifies_and_frees_the_line(tiny_context, pair, run_id, clock):
    request_id = tiny.requests(tiny_context)[0].id
    finish(tiny_context, run_id)
    request, run = tiny.request_of(tiny_context, request_id), tiny.run_of(tiny_context, run_id)
    assert (request.state, request.outcome, request.user_id) == ("completed", "erased", None)
    assert (run.stage, run.stage_note, run.finished_at) == ("completed", "", clock())
    (record,) = tiny.certificates(tiny_context)
    assert (record.id, record.request_id) == (request.certificate_id, request.id)
    weights = registry.path(tiny_context.settings, run.candidate_digest)
    result = verify(record.envelope, public_key=tiny_context.keyring.public_key, weights_path=weights)
    assert result.valid, result.checks
    assert result.erased
    assert result.statement["predicate"]["generation"] == 2
    last = tiny.log_entries(tiny_context)[-1]
    assert (last.kind, json.loads(last.entry)["run_id"], json.loads(last.entry)["end"]) == ("run", run_id, "completed")
    with reading(tiny_context.engine) as s:
        assert s.get(OpenLine, LINE) is None
        hashes = set(s.exec(select(Tombstone.subject_hash)))
    assert hashes == {tiny_context.keyring.subject_hash(pair[0])}  # stays: in no later training


def test_completing_again_changes_nothing(tiny_context, clock, run_id):
    finish(tiny_context, run_id)
    before = tiny.requests(tiny_context), tiny.certificates(tiny_context), tiny.log_entries(tiny_context)
    clock.advance(seconds=1)
    complete(tiny.workspace(tiny_context, run_id))
    tidy(tiny.workspace(tiny_context, run_id))
    complete(tiny.workspace(tiny_context, run_id))
    assert (tiny.requests(tiny_context), tiny.certificates(tiny_context), tiny.log_entries(tiny_context)) == before
    with reading(tiny_context.engine) as s:
        assert len(s.exec(select(RequestEvent).where(RequestEvent.to_state == "completed")).all()) == 1


def test_nothing_is_completed_before_all_is_destroyed(tiny_context, run_id):
    before = tiny.log_entries(tiny_context)
    with pytest.raises(RunStoppedError, match="finished purge"):
        complete(tiny.workspace(tiny_context, run_id))
    assert tiny.certificates(tiny_context) == []
    assert tiny.log_entries(tiny_context) == before
    assert {request.state for request in tiny.requests(tiny_context)} == {"purging"}


def test_each_of_a_mixed_batch_gets_its_own_certificate(tiny_context, pair, mixed):
    order = [pair[0], tiny.people(tiny_context, "test")[0], "nobody-we-know"]
    ids = {request.user_id: request.id for request in tiny.requests(tiny_context)}
    finish(tiny_context, mixed)
    ended = [tiny.request_of(tiny_context, ids[person]) for person in order]
    assert [request.outcome for request in ended] == ["erased", "erased", "no_data_held"]
    assert [request.user_id for request in ended] == [None, None, None]
    records = {record.id: record for record in tiny.certificates(tiny_context)}
    assert len(records) == 3
    mine = [records[request.certificate_id] for request in ended]
    assert [record.verdict for record in mine] == ["PASSED", "NOT_REQUIRED", "NOT_REQUIRED"]
    assert [record.request_id for record in mine] == [request.id for request in ended]
    key = tiny_context.keyring.public_key
    assert all(verify(record.envelope, public_key=key).erased for record in mine)
    assert not {row.user_id for row in read_metadata(tiny_context.settings.data_folder)} & set(order)


def test_a_run_without_anything_to_unlearn_keeps_the_model(tiny_context):
    run_id = tiny.plan_run(tiny_context, tiny.people(tiny_context, "test")[0])
    advance(tiny_context, run_id, "purging")
    finish(tiny_context, run_id)
    run = tiny.run_of(tiny_context, run_id)
    (record,) = tiny.certificates(tiny_context)
    assert record.verdict == "NOT_REQUIRED"
    weights = registry.path(tiny_context.settings, run.base_digest)
    assert verify(record.envelope, weights_path=weights).erased
    assert tiny.requests(tiny_context)[0].outcome == "erased"


def test_a_service_without_data_completes_too(context, clock):
    context.settings.data_folder.mkdir()
    (context.settings.data_folder / METADATA).write_text("file_name,user_id,label,split\n")
    tiny.file(context, "s31")
    clock.advance(seconds=context.settings.hold_seconds)
    run_id = tiny.claim(context, tiny.POLICY)
    tiny.workspace(context, run_id).make_plan()
    advance(context, run_id, "purging")
    finish(context, run_id)
    assert tiny.requests(context)[0].outcome == "no_data_held"
    assert verify(tiny.certificates(context)[0].envelope).erased


def test_a_request_that_follows_shares_outcome_and_certificate(tiny_context, pair, run_id):
    (leading,) = tiny.requests(tiny_context)
    (following,) = tiny.file(tiny_context, pair[0])
    finish(tiny_context, run_id)
    leader, follower = (tiny.request_of(tiny_context, each) for each in (leading.id, following))
    assert (follower.state, follower.outcome, follower.user_id) == ("completed", "erased", None)
    assert follower.certificate_id == leader.certificate_id is not None
    assert follower.commitment == leader.commitment
    assert len(tiny.certificates(tiny_context)) == 1


def test_tidying_leaves_no_file_of_the_run_and_no_user_id_in_the_database(tiny_context, pair, run_id):
    finish(tiny_context, run_id)
    settings = tiny_context.settings
    RunFolder(settings, run_id).write("left", {})
    tidy(tiny.workspace(tiny_context, run_id))
    tidy(tiny.workspace(tiny_context, run_id))
    assert list(settings.runs_folder.iterdir()) == []
    for path in settings.home.glob("expunge.db*"):
        assert pair[0].encode() not in path.read_bytes(), path
