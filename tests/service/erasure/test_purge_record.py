"""A purge that stops half-way is resumed, and its certificates say what was seen to be destroyed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime

import pytest

from audit.proof.certificate import verify
from service.banks import replica
from service.banks.build import build_bank
from service.banks.qualifications import note_tuned
from service.banks.store import BankStore
from service.erasure import completion, purge_record
from service.erasure.pipeline import abandon
from service.erasure.workspace import RunFolder
from service.errors import ConflictError, RunStoppedError, StorageError
from service.keys import api_keys
from service.keys.api_keys import Client
from service.models import destruction, registry, rosters
from service.requests import decisions, intake
from service.requests.intake import LEGAL_HOLD
from service.requests.runs import advance, workflow_id
from service.requests.schemas import Decision, Filing, Rejection
from service.store.engine import session
from service.training import data
from service.worker import claim
from tests.service import tiny
from tests.service.versions import add_version
from unlearning.faces import read_metadata
from unlearning.faces.packing import folder_digest
from unlearning.faces.unnamed import LOOKED_THROUGH

OFFICER = Client("officer", "officer", frozenset(api_keys.SCOPES))


@pytest.fixture
def pair(tiny_context):
    """Two people of one block; the first is erased."""
    return tiny.same_block(tiny_context)


@pytest.fixture
def run_id(tiny_context, pair):
    """A run that has put its model into service and is about to destroy."""
    return tiny.deploy_run(tiny_context, pair[0])


@pytest.fixture
def stopped(tiny_context, run_id, monkeypatch):
    """The same run after images and columns were destroyed and the storage then refused until nobody tried again."""
    with monkeypatch.context() as refusing:
        refuse_storage(refusing)
        with pytest.raises(StorageError):
            completion.purge(tiny.workspace(tiny_context, run_id))
    abandon(tiny_context, run_id, "The storage refused.")
    return run_id


def refuse_storage(monkeypatch):
    def refuse(context):
        raise StorageError("The storage refused.")

    monkeypatch.setattr(replica, "follow_erasure", refuse)


def approve(context, request):
    return decisions.approve(context, OFFICER, request.id, Decision(reason="The storage works again."))


def destroyed_of(record):
    return verify(record.envelope).statement["predicate"]["purge"]["destroyed"]


def test_a_stopped_purge_keeps_its_run_and_the_line(tiny_context, pair, stopped, clock):
    (request,) = tiny.requests(tiny_context)
    assert (request.state, request.run_id, request.user_id) == ("needs_attention", stopped, pair[0])
    run = tiny.run_of(tiny_context, stopped)
    assert (run.stage, run.finished_at, run.stage_note) == ("needs_attention", None, "The storage refused.")
    assert (tiny_context.settings.runs_folder / stopped / "plan.json").exists()
    tiny.file(tiny_context, pair[1])
    clock.advance(seconds=tiny_context.settings.hold_seconds)
    assert claim(tiny_context, tiny.POLICY) is None


def test_approving_resumes_the_same_run_and_its_certificate_tells_of_the_whole_erasure(tiny_context, pair, stopped):
    (request,) = tiny.requests(tiny_context)
    approve(tiny_context, request)
    run = tiny.run_of(tiny_context, stopped)
    assert (run.stage, workflow_id(run)) == ("purging", f"{stopped}.1")
    assert tiny.request_of(tiny_context, request.id).state == "purging"
    completion.purge(tiny.workspace(tiny_context, stopped))
    completion.complete(tiny.workspace(tiny_context, stopped))
    (record,) = tiny.certificates(tiny_context)
    assert (record.run_id, record.verdict) == (stopped, "PASSED")
    assert destroyed_of(record) == {
        "image files": tiny.N_IMAGES, "reference columns": tiny.N_IMAGES,
        "feature and exposure columns": tiny.N_IMAGES, "older model versions": 1,
    }  # fmt: skip
    assert tiny.request_of(tiny_context, request.id).outcome == "erased"


def test_a_run_can_be_resumed_more_than_once(tiny_context, stopped, monkeypatch):
    (request,) = tiny.requests(tiny_context)
    for number in (1, 2):
        approve(tiny_context, request)
        assert workflow_id(tiny.run_of(tiny_context, stopped)) == f"{stopped}.{number}"
        with monkeypatch.context() as refusing:
            refuse_storage(refusing)
            with pytest.raises(StorageError):
                completion.purge(tiny.workspace(tiny_context, stopped))
        abandon(tiny_context, stopped, "The storage refused again.")
    approve(tiny_context, request)
    completion.purge(tiny.workspace(tiny_context, stopped))
    completion.complete(tiny.workspace(tiny_context, stopped))
    assert destroyed_of(tiny.certificates(tiny_context)[0])["image files"] == tiny.N_IMAGES


def test_a_durable_run_that_stopped_in_the_purge_is_resumed_by_a_workflow_of_its_own(tiny_context):
    """The whole way with DBOS, in a process of its own; see `stopped_purge`."""
    command = [sys.executable, "-m", "tests.service.stopped_purge", str(tiny_context.settings.home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seen"] == ["needs_attention", "completed"]
    assert found["reason"] == "The storage refuses to destroy."
    assert found["workflows"] == [found["run"], f"{found['run']}.1"]
    assert (found["certified"], found["verdict"], found["outcome"]) == (found["run"], "PASSED", "erased")
    assert found["destroyed"] == {
        "image files": tiny.N_IMAGES, "reference columns": tiny.N_IMAGES,
        "feature and exposure columns": tiny.N_IMAGES, "older model versions": 1,
    }  # fmt: skip


def test_one_approval_resumes_the_whole_batch(tiny_context, pair, monkeypatch):
    run_id = tiny.deploy_run(tiny_context, *pair)
    with monkeypatch.context() as refusing:
        refuse_storage(refusing)
        with pytest.raises(StorageError):
            completion.purge(tiny.workspace(tiny_context, run_id))
    abandon(tiny_context, run_id, "The storage refused.")
    first, second = tiny.requests(tiny_context)
    approve(tiny_context, second)
    assert {request.state for request in tiny.requests(tiny_context)} == {"purging"}
    with pytest.raises(ConflictError):
        approve(tiny_context, first)
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    assert [destroyed_of(record)["image files"] for record in tiny.certificates(tiny_context)] == [tiny.N_IMAGES] * 2


def test_a_stopped_purge_is_neither_rejected_nor_held(tiny_context, pair, stopped):
    (request,) = tiny.requests(tiny_context)
    with pytest.raises(ConflictError, match="approve this one"):
        decisions.reject(
            tiny_context, OFFICER, request.id, Rejection(legal_reason="legal_claims", explanation="Too late.")
        )
    intake.file_requests(
        tiny_context, tiny.CLIENT, Filing(user_ids=[pair[0]], legal_hold=True), n_subjects=lambda: 1000, most_open=1000
    )
    leader = tiny.request_of(tiny_context, request.id)
    assert (leader.state, leader.run_id) == ("needs_attention", stopped)
    assert leader.attention_reason != LEGAL_HOLD


def test_the_record_outlives_the_run_s_working_files(tiny_context, stopped):
    """The home's disk was exchanged, say: what the certificate needs is in the database."""
    RunFolder(tiny_context.settings, stopped).destroy()
    approve(tiny_context, tiny.requests(tiny_context)[0])
    completion.purge(tiny.workspace(tiny_context, stopped))
    completion.complete(tiny.workspace(tiny_context, stopped))
    (record,) = tiny.certificates(tiny_context)
    predicate = verify(record.envelope).statement["predicate"]
    assert (predicate["policy"]["name"], predicate["verdict"]) == ("tiny", "PASSED")
    assert predicate["procedure"]["settings"] == {}


def test_the_second_erasure_counts_only_what_it_destroyed(tiny_context, pair):
    for person in pair:
        tiny.finish(tiny_context, tiny.judge_run(tiny_context, person))
    counts = [destroyed_of(record)["older model versions"] for record in tiny.certificates(tiny_context)]
    assert counts == [1, 1]


def test_what_was_gone_before_is_not_counted(tiny_context, pair, run_id):
    """An image that somebody removed by hand, and columns of a bank that somebody threw away."""
    first, *_ = tiny.images_of(tiny_context, pair[0])
    first.unlink()
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    assert destroyed_of(tiny.certificates(tiny_context)[0])["image files"] == tiny.N_IMAGES - 1


def test_a_purge_does_not_begin_while_images_are_out_of_sight(tiny_context, pair, run_id):
    """The volume of the images is not mounted, the table is there: nobody knows what there is to be destroyed."""
    images, away = tiny_context.settings.data_folder / "images", tiny_context.settings.data_folder / "elsewhere"
    images.rename(away)
    with pytest.raises(RunStoppedError, match="image files"):
        completion.purge(tiny.workspace(tiny_context, run_id))
    assert tiny.run_of(tiny_context, run_id).purge is None
    away.rename(images)
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    assert destroyed_of(tiny.certificates(tiny_context)[0])["image files"] == tiny.N_IMAGES


def test_copies_that_no_row_names_are_destroyed_and_counted(tiny_context, pair, run_id):
    first, *_ = tiny.images_of(tiny_context, pair[0])
    copy = tiny_context.settings.data_folder / "old" / "again.png"
    copy.parent.mkdir()
    copy.write_bytes(first.read_bytes())
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    assert not copy.exists()
    assert destroyed_of(tiny.certificates(tiny_context)[0])["copies of image files"] == 1


def test_an_image_that_comes_while_a_purge_is_interrupted_goes_and_counts(tiny_context, pair, run_id, monkeypatch):
    with monkeypatch.context() as refusing:
        refuse_storage(refusing)
        refusing.setattr(completion, "remove_subjects", lambda *_, **__: None)  # killed before the first image
        with pytest.raises((StorageError, AttributeError)):
            completion.purge(tiny.workspace(tiny_context, run_id))
    tiny.add_image(tiny_context, pair[0])
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    assert destroyed_of(tiny.certificates(tiny_context)[0])["image files"] == tiny.N_IMAGES + 1


def version_of(context, person):
    """Weights out of service that learned from a person; gives their digest."""
    digest = add_version(context, 1)
    with session(context.engine) as s:
        rosters.write(s, digest, {context.keyring.subject_hash(person): tiny.N_IMAGES})
        s.commit()
    return digest


def test_weights_that_are_only_out_of_sight_are_not_taken_for_destroyed(tiny_context):
    """Somebody moved the file away."""
    run_id = tiny.plan_run(tiny_context, "nobody-we-know")
    advance(tiny_context, run_id, "purging")
    version = version_of(tiny_context, "nobody-we-know")
    record = purge_record.begin(tiny.workspace(tiny_context, run_id))
    registry.path(tiny_context.settings, version).unlink()
    with pytest.raises(RunStoppedError, match="found 1 older model versions"):
        purge_record.finish(tiny.workspace(tiny_context, run_id), record, n_unnamed=0, data_digest_after="d" * 64)
    destruction.destroy(tiny_context, version)
    purge_record.finish(tiny.workspace(tiny_context, run_id), record, n_unnamed=0, data_digest_after="d" * 64)
    ended = purge_record.of(tiny.run_of(tiny_context, run_id))
    assert [counts["older model versions"] for counts in ended.destroyed.values()] == [1]


def test_what_comes_while_a_purge_is_interrupted_is_recorded_before_it_goes(tiny_context):
    """Or nobody would know of it after the next interruption."""
    person = tiny.people(tiny_context, "test")[0]
    run_id = tiny.plan_run(tiny_context, person)
    advance(tiny_context, run_id, "purging")
    (before,) = purge_record.begin(tiny.workspace(tiny_context, run_id)).held.values()
    copy = tiny_context.settings.data_folder / "again.png"
    copy.write_bytes(tiny.images_of(tiny_context, person)[0].read_bytes())
    tiny.add_image(tiny_context, person)
    version = version_of(tiny_context, person)
    purge_record.begin(tiny.workspace(tiny_context, run_id))
    (holding,) = purge_record.of(tiny.run_of(tiny_context, run_id)).held.values()
    assert set(holding.images) > set(before.images)
    assert (len(holding.images), holding.copies, holding.versions) == (tiny.N_IMAGES + 1, ["again.png"], [version])


def test_a_new_image_under_the_name_of_a_destroyed_one_does_not_keep_a_purge_from_ending(
    tiny_context, pair, run_id, monkeypatch
):
    image, content = tiny.images_of(tiny_context, pair[0])[0], tiny.images_of(tiny_context, pair[1])[0].read_bytes()
    with monkeypatch.context() as refusing:
        refuse_storage(refusing)
        with pytest.raises(StorageError):
            completion.purge(tiny.workspace(tiny_context, run_id))
    data_folder = tiny_context.settings.data_folder
    image.parent.mkdir(exist_ok=True)
    image.write_bytes(content)
    tiny.repaint(image)
    with (data_folder / "metadata.csv").open("a") as table:
        table.write(f"{image.relative_to(data_folder)},newcomer,young,train\n")
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    assert destroyed_of(tiny.certificates(tiny_context)[0])["image files"] == tiny.N_IMAGES
    assert tiny.images_of(tiny_context, "newcomer") == [image]
    assert image.exists()


def test_the_certificate_says_what_was_not_looked_into(tiny_context, pair, run_id):
    (tiny_context.settings.data_folder / "metadata.csv.bak").write_text(pair[0])
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    result = verify(tiny.certificates(tiny_context)[0].envelope)
    purge = result.statement["predicate"]["purge"]
    assert purge["looked_through"] == LOOKED_THROUGH
    assert purge["n_files_not_looked_into"] == 1
    assert any("1 other files of the data folder were not looked into" in check.sentence for check in result.checks)


def test_columns_of_every_bank_are_counted(tiny_context, pair, run_id):
    """Also those of a bank that did not judge this run."""
    plan = tiny.plan_for(tiny_context, *pair, tiny.people(tiny_context)[-1])
    tiny.build(tiny_context, plan, 1)
    of_a_comparison = BankStore(tiny_context.settings.evaluations_folder / "one")
    build_bank(of_a_comparison, plan, 1, tiny_context.settings, lambda *_: None, now=tiny_context.now())
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    assert destroyed_of(tiny.certificates(tiny_context)[0])["reference columns"] == 3 * tiny.N_IMAGES
    assert not of_a_comparison.count_columns([tiny_context.keyring.block_hash(pair[0])])


@pytest.mark.parametrize(
    "what",
    [
        "image files", "copies of image files", "older model versions", "reference columns",
        "probe subjects of qualifications",
    ],
)  # fmt: skip
def test_nothing_is_certified_as_destroyed_that_is_there_again(tiny_context, pair, run_id, monkeypatch, what):
    """Somebody restores from a backup while the purge goes on."""
    settings = tiny_context.settings
    first, *_ = tiny.images_of(tiny_context, pair[0])
    weights = registry.path(settings, tiny.run_of(tiny_context, run_id).base_digest)
    image, content = first.read_bytes(), weights.read_bytes()
    copy = settings.data_folder / "again.png"
    copy.write_bytes(image)

    def restore(_settings):
        if what == "image files":
            first.parent.mkdir(exist_ok=True)
            first.write_bytes(image)
        elif what == "copies of image files":
            copy.write_bytes(image)
        elif what == "older model versions":
            weights.write_bytes(content)
        elif what == "probe subjects of qualifications":
            note_tuned(tiny_context, "remix", data.recipe_of(tiny_context), [pair[0]])
        else:
            monkeypatch.setattr(BankStore, "count_columns", lambda *_: {columns: 3})

    columns = (tiny_context.keyring.block_hash(pair[0]), "margin")
    with monkeypatch.context() as patched:
        patched.setattr(completion, "forget_reports", restore)
        with pytest.raises(RunStoppedError, match=f"found {3 if what == 'reference columns' else 1} {what}"):
            completion.purge(tiny.workspace(tiny_context, run_id))
    monkeypatch.undo()
    with pytest.raises(RunStoppedError, match="finished purge"):
        completion.complete(tiny.workspace(tiny_context, run_id))
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    assert tiny.requests(tiny_context)[0].outcome == "erased"
    assert not first.exists()


def test_file_names_leave_the_database_with_the_user_id(tiny_context, pair, run_id):
    names = [row.file_name for row in read_metadata(tiny_context.settings.data_folder) if row.user_id == pair[0]]
    completion.purge(tiny.workspace(tiny_context, run_id))
    record = tiny.run_of(tiny_context, run_id).purge
    assert [sorted(holding["images"]) for holding in record["held"].values()] == [sorted(names)]
    completion.complete(tiny.workspace(tiny_context, run_id))
    assert tiny.run_of(tiny_context, run_id).purge == {**record, "held": {}}
    completion.tidy(tiny.workspace(tiny_context, run_id))
    for path in tiny_context.settings.home.glob("expunge.db*"):
        assert not any(name.encode() in path.read_bytes() for name in names), path


def predicates(context):
    return {
        request.id: verify(record.envelope).statement["predicate"]
        for request in tiny.requests(context)
        for record in tiny.certificates(context)
        if record.id == request.certificate_id
    }


def test_each_certificate_of_a_batch_tells_of_its_own_person(tiny_context, pair):
    """One the model learned from, one of the test split with an image missing and another there twice, one unknown."""
    trained, tested, unknown = pair[0], tiny.people(tiny_context, "test")[0], "nobody-we-know"
    missing, twice, *_ = tiny.images_of(tiny_context, tested)
    run_id = tiny.deploy_run(tiny_context, trained, tested, unknown)
    missing.unlink()
    (tiny_context.settings.data_folder / "twice.png").write_bytes(twice.read_bytes())
    requests = {request.user_id: request for request in tiny.requests(tiny_context)}
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    found = predicates(tiny_context)
    nothing = {"image files": 0, "reference columns": 0, "older model versions": 0}
    assert [found[requests[person].id]["purge"]["destroyed"] for person in (trained, tested, unknown)] == [
        {
            "image files": tiny.N_IMAGES,
            "reference columns": tiny.N_IMAGES,
            "feature and exposure columns": tiny.N_IMAGES,
            "older model versions": 1,
        },
        {**nothing, "image files": tiny.N_IMAGES - 1, "copies of image files": 1},
        nothing,
    ]
    for request in requests.values():
        assert found[request.id]["subject_commitments"] == [request.commitment]
        assert found[request.id]["request_id"] == request.id
        procedure = found[request.id]["procedure"]
        assert procedure["data_digest_after"] == folder_digest(tiny_context.settings.data_folder)
        assert procedure["data_digest_after"] != procedure["data_digest_before"]


def test_a_copy_that_a_kill_left_overwritten_is_removed_whoever_of_the_batch_it_shows(tiny_context):
    people = tiny.people(tiny_context, "test")[:2]
    copy = tiny_context.settings.data_folder / "again.png"
    copy.write_bytes(tiny.images_of(tiny_context, people[1])[0].read_bytes())
    run_id = tiny.plan_run(tiny_context, *people)
    advance(tiny_context, run_id, "purging")
    purge_record.begin(tiny.workspace(tiny_context, run_id))
    copy.write_bytes(bytes(copy.stat().st_size))
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    assert not copy.exists()
    found = predicates(tiny_context)
    destroyed = [found[request.id]["purge"]["destroyed"] for request in tiny.requests(tiny_context)]
    assert [counts.get("copies of image files", 0) for counts in destroyed] == [0, 1]


def test_a_certificate_says_when_the_purge_ended_and_who_acknowledged_the_swap(tiny_context, clock, run_id):
    acknowledged = {
        "kind": "acknowledged", "boot_id": "a", "acknowledged_generation": 2, "acknowledged_at": clock().isoformat(),
    }  # fmt: skip
    RunFolder(tiny_context.settings, run_id).write("barrier", {"generation": 2, "processes": [acknowledged]})
    ticking = replace(tiny_context, now=lambda: clock.advance(seconds=1))
    completion.purge(tiny.workspace(ticking, run_id))
    record = tiny.run_of(tiny_context, run_id).purge
    completion.complete(tiny.workspace(ticking, run_id))
    (found,) = predicates(tiny_context).values()
    at = datetime.fromisoformat
    assert tiny.run_of(tiny_context, run_id).created_at < at(record["began_at"]) < at(record["finished_at"])
    assert at(found["purge"]["finished_at"]) == at(record["finished_at"]) < at(found["issued_at"])
    assert [row["boot_id"] for row in found["barrier"]] == ["a"]
