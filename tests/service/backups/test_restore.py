"""A backup taken while everything runs, and homes made from it in which nobody erased comes back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace

import pytest
from sqlmodel import select

from audit.proof.certificate import verify
from service.backups.records import CLIENT
from service.backups.restore import check, restore
from service.backups.taking import back_up
from service.context import Context
from service.errors import BackupError, StartupError
from service.launch import environment
from service.models import networks, registry
from service.models.deployment import pointer
from service.requests import intake
from service.requests.schemas import Filing
from service.store import ledger
from service.store.engine import reading, session
from service.store.fail_points import BACKUPS, RESTORES
from service.store.restoring import is_unfinished
from service.store.tables import ApiKey, ModelVersion, OpenLine, Tombstone
from service.training.production import train_production
from service.worker import claim
from tests.service import tiny, versions
from tests.waiting import PATIENCE_SECONDS
from unlearning.faces.packing import folder_digest


@pytest.fixture
def take(tiny_context, tmp_path):
    """Backs the tiny home up; gives the file."""

    def make(name="backup.tar", **options):
        back_up(tiny_context.settings, tmp_path / name, now=tiny_context.now, **options)
        return tmp_path / name

    return make


@pytest.fixture
def bring(tiny_context, tmp_path):
    """Restores a file into a new home; gives its context and what was left to be done."""
    opened = []

    def make(file, *, newer=None, asked=(), home="restored"):
        settings = tiny.settings_of(tmp_path / home)
        done = restore(settings, file, newer=newer, asked=list(asked), now=tiny_context.now)
        opened.append(replace(Context.open(settings), now=tiny_context.now))
        return opened[-1], done.settled

    yield make
    for context in opened:
        context.engine.dispose()


@pytest.fixture
def erased(tiny_context):
    """Somebody whose erasure ends when the function is called; gives the id of the run."""
    person = tiny.same_block(tiny_context)[0]

    def erase():
        run_id = tiny.judge_run(tiny_context, person)
        tiny.finish(tiny_context, run_id)
        return run_id

    return person, erase


def log_of(context):
    with reading(context.engine) as s:
        return ledger.leaf_hashes(s)


def test_a_restored_home_is_the_one_that_was_backed_up(tiny_context, take, bring):
    file = take()
    assert file.stat().st_mode & 0o777 == 0o600
    restored, settled = bring(file)
    there, here = tiny_context.settings, restored.settings
    assert folder_digest(here.data_folder) == folder_digest(there.data_folder)
    assert (here.home / "recipe.json").read_bytes() == (there.home / "recipe.json").read_bytes()
    assert (here.keys_folder / "tombstone.key").read_bytes() == (there.keys_folder / "tombstone.key").read_bytes()
    assert (here.keys_folder / "signing.pem").stat().st_mode & 0o777 == 0o600
    assert registry.load_checked(restored, pointer(restored).committed_digest)
    assert (settled.n_filed, settled.is_served, settled.n_weights) == (0, True, 0)
    assert log_of(restored)[:-1] == log_of(tiny_context)
    assert not is_unfinished(here.home)
    assert {path.name for path in here.home.iterdir()} - {"expunge.db-shm", "expunge.db-wal"} == {
        "data", "expunge.db", "keys", "models", "recipe.json", "reports",
    }  # fmt: skip


def test_networks_that_versions_name_come_along(tiny_context, take, bring, tmp_path):
    """Without its network a version cannot be served by OpenVINO."""
    weights = versions.write_weights(tmp_path / "weights", 1)
    known = {tiny_context.keyring.subject_hash(person): 1 for person in tiny.people(tiny_context)[:2]}
    digest = registry.add(
        tiny_context, weights, versions.manifest(1), known, network=b"a network", state=registry.SPARE
    )
    restored, _ = bring(take())
    named = registry.get(restored, digest).manifest["network"]
    assert networks.path(restored.settings, named).read_bytes() == b"a network"


@pytest.mark.parametrize("known_by", ["home", "later backup"])
def test_whoever_was_erased_since_the_backup_is_erased_again(tiny_context, take, bring, erased, known_by):
    person, erase = erased
    file, before = take(), pointer(tiny_context)
    erase()
    with session(tiny_context.engine) as s:
        s.add(ApiKey(id="gone", name="gone", sha256="x", scopes=[], created_at=tiny_context.now(),
                     revoked_at=tiny_context.now()))  # fmt: skip
        s.commit()
    newer = tiny_context.settings.home if known_by == "home" else take("later.tar")
    restored, settled = bring(file, newer=str(newer))

    # their data and the weights that remember them are there, and not served
    assert len(tiny.images_of(restored, person)) == tiny.N_IMAGES
    assert (settled.n_filed, settled.is_served) == (1, False)
    line = pointer(restored)
    assert line.committed_digest == before.committed_digest
    assert pointer(tiny_context).committed_generation < line.committed_generation < line.oldest_allowed_generation
    # what happened since is known, and the log goes on from its newest end
    n = len(log_of(tiny_context))
    assert log_of(restored)[:n] == log_of(tiny_context)
    assert tiny.log_entries(restored)[n].kind == "restore"
    assert len(tiny.certificates(restored)) == len(tiny.certificates(tiny_context))
    with reading(restored.engine) as s:
        assert s.get_one(ApiKey, "gone").revoked_at is not None
        assert len(s.exec(select(Tombstone)).all()) == 1

    # the worker carries the erasure out again, with a certificate of its own
    (request,) = [each for each in tiny.requests(restored) if each.state == "queued"]
    assert (request.client_id, request.user_id) == (CLIENT.id, person)
    run_id = claim(restored, tiny.POLICY)
    work = tiny.workspace(restored, run_id)
    assert work.make_plan().must_unlearn
    tiny.build(restored, tiny.references.bank_plan(work))
    assert tiny.try_step(restored, run_id, tiny.RETRAIN)
    tiny.finish(restored, run_id)
    assert tiny.images_of(restored, person) == []
    after = pointer(restored)
    assert after.committed_generation >= after.oldest_allowed_generation > line.committed_generation
    assert registry.get(restored, before.committed_digest).state == "destroyed"
    assert not registry.path(restored.settings, before.committed_digest).exists()
    certificate = tiny.certificates(restored)[-1]
    assert certificate.request_id == request.id
    assert certificate.verdict == "PASSED"
    leaves = [leaf.entry for leaf in tiny.log_entries(restored)]
    assert verify(certificate.envelope, public_key=restored.keyring.public_keys, log_leaves=leaves).valid


@pytest.fixture
def unwritable(tiny_context, tmp_path):
    """The tiny home under another path, where nobody can write."""
    door = tmp_path / "door"
    door.mkdir()
    for words in (["--bind", str(tiny_context.settings.home), str(door)], ["-o", "remount,ro,bind", str(door)]):
        if subprocess.run(["mount", *words], capture_output=True, check=False, timeout=PATIENCE_SECONDS).returncode:
            pytest.skip("only root may mount")
    yield door
    subprocess.run(["umount", str(door)], check=True, timeout=PATIENCE_SECONDS)


def test_the_old_home_may_be_on_a_disk_that_nobody_writes_to_any_more(tiny_context, take, bring, erased, unwritable):
    file = take()
    erased[1]()
    tiny_context.engine.dispose()  # nobody has it open, and nothing lies beside the database
    assert not list(unwritable.glob("expunge.db-*"))
    _, settled = bring(file, newer=str(unwritable))
    assert (settled.n_filed, settled.is_served) == (1, False)


def test_people_whom_no_record_names_are_asked_for_by_a_list(tiny_context, take, bring, erased):
    person, erase = erased
    file = take()
    erase()
    restored, settled = bring(file, asked=[person, "unknown"])
    assert (settled.n_filed, settled.is_served) == (2, False)
    assert {request.user_id for request in tiny.requests(restored)} == {person, "unknown"}


def test_nobody_of_the_test_split_stops_predictions(tiny_context, take, bring):
    file = take()
    _, settled = bring(file, asked=[tiny.people(tiny_context, "test")[0]])
    assert (settled.n_filed, settled.is_served) == (1, True)


def test_an_open_run_begins_anew(tiny_context, take, bring, erased):
    person, _ = erased
    tiny.judge_run(tiny_context, person)
    restored, settled = bring(take())
    (request,) = tiny.requests(restored)
    assert (request.state, request.user_id, request.run_id, settled.n_filed) == ("queued", person, None, 0)
    with reading(restored.engine) as s:
        assert s.get(OpenLine, "default") is None
        states = {version.state for version in s.exec(select(ModelVersion))}
    assert states == {"active"}
    assert claim(restored, tiny.POLICY) is not None


def test_what_is_erased_while_a_backup_is_taken_is_not_in_it(tiny_context, take, bring, erased):
    person, erase = erased
    passed = []

    def reached(point):
        passed.append(point)
        if passed == ["backup.database", "backup.data"]:
            erase()

    restored, settled = bring(take(reached=reached))
    assert passed.count("backup.database") == 2
    assert tiny.images_of(restored, person) == []
    assert (settled.n_filed, settled.is_served) == (0, True)
    assert log_of(restored)[:-1] == log_of(tiny_context)


def test_a_purge_in_the_middle_is_waited_for(tiny_context, take, tmp_path, erased):
    person, _ = erased
    run_id = tiny.deploy_run(tiny_context, person)
    from service.erasure import purge_record

    purge_record.begin(tiny.workspace(tiny_context, run_id))
    with pytest.raises(BackupError, match="middle of its purge"):
        take(sleep=lambda _: None)
    assert not (tmp_path / "backup.tar").exists()
    rest = []

    def sleep(_):
        rest.append(1)
        if len(rest) == 3:
            tiny.completion.purge(tiny.workspace(tiny_context, run_id))
            tiny.completion.complete(tiny.workspace(tiny_context, run_id))

    assert take(sleep=sleep).exists()


def test_only_into_an_empty_home(tiny_context, take, bring, tmp_path):
    file = take()
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored" / "something").touch()
    with pytest.raises(BackupError, match=r"empty home.*--erased-since"):
        bring(file)
    with pytest.raises(FileExistsError):
        take()


def test_records_that_are_older_or_of_another_service_are_refused(tiny_context, take, bring, erased, tmp_path):
    early = take("early.tar")
    erased[1]()
    late = take("late.tar")
    with pytest.raises(BackupError, match="newer than the backup"):
        bring(late, newer=str(early))
    other = Context.open(tiny.settings_of(tmp_path / "other"))
    other.engine.dispose()
    with pytest.raises(BackupError, match="other keys"):
        bring(late, newer=str(tmp_path / "other"))
    assert list((tmp_path / "restored").iterdir()) == []


def test_a_backup_that_is_cut_off_or_altered_is_refused(take, bring, tmp_path):
    file = take()
    check(file)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[: whole.rindex(b"manifest.json")], b"", b"not a tar" * 1000):
        file.write_bytes(damaged)
        with pytest.raises(BackupError):
            bring(file)
    place = whole.index(b"\xff\xd8") if b"\xff\xd8" in whole else whole.index(b"PNG")
    file.write_bytes(whole[: place + 40] + bytes([whole[place + 40] ^ 1]) + whole[place + 41 :])
    with pytest.raises(BackupError, match="1 differ"):
        bring(file)
    assert list((tmp_path / "restored").iterdir()) == []


def expunge(settings, *words, fail_at="", status=0):
    env = environment(settings) | ({"EXPUNGE_FAIL_AT": fail_at} if fail_at else {})
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *words],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("point", BACKUPS)
def test_a_killed_backup_leaves_nothing_that_looks_whole(tiny_context, tmp_path, point):
    settings, file = tiny_context.settings, tmp_path / "to" / "backup.tar"
    expunge(settings, "backup", str(file), fail_at=point, status=-signal.SIGKILL)
    assert not file.exists()
    for left in file.parent.iterdir():  # not whole by its name; and but for the last point not by its content
        assert left.name.startswith(".backup.tar.")
        if point != "backup.written":
            with pytest.raises(BackupError):
                check(left)
    expunge(settings, "backup", str(file))
    assert [path.name for path in file.parent.iterdir()] == ["backup.tar"]
    assert "is whole" in expunge(settings, "restore", "--check", str(file))
    assert list(settings.home.glob(".backing-up-*")) == []


@pytest.mark.parametrize("point", RESTORES)
def test_a_killed_restore_is_repeated(tiny_context, tmp_path, take, erased, point):
    file = take()
    erased[1]()
    settings = tiny.settings_of(tmp_path / "restored")
    words = ("restore", str(file), "--erased-since", str(tiny_context.settings.home))
    expunge(settings, *words, fail_at=point, status=-signal.SIGKILL)
    with pytest.raises(StartupError, match="being restored"):
        Context.open(settings)
    said = expunge(settings, "train", status=1)
    assert "being restored" in said
    assert not (settings.home / "expunge.db").exists() or point == "restore.moved"
    expunge(settings, *words)
    context = replace(Context.open(settings), now=tiny_context.now)
    (request,) = [each for each in tiny.requests(context) if each.state == "queued"]
    assert request.user_id == erased[0]
    assert len(log_of(context)) == len(log_of(tiny_context)) + 1
    assert list(settings.home.glob(".rest*")) == []
    context.engine.dispose()


def test_a_legal_hold_that_came_during_a_run_holds_after_a_restore(tiny_context, take, bring):
    person, other = tiny.people(tiny_context)[:2]
    tiny.claim_run(tiny_context, person, other)
    filing = Filing(user_ids=[person], legal_hold=True)
    intake.file_requests(tiny_context, tiny.CLIENT, filing, n_subjects=lambda: 1000, most_open=1000)
    restored, _ = bring(take())
    found = {(each.user_id, each.state, each.attention_reason) for each in tiny.requests(restored)}
    assert found == {(person, "needs_attention", intake.LEGAL_HOLD), (other, "queued", None)}
    claim(restored, tiny.POLICY)
    assert {each.state for each in tiny.requests(restored) if each.user_id == person} == {"needs_attention"}


def test_no_backup_is_taken_into_the_home(tiny_context, tmp_path):
    """Whoever is erased later would be in the home for as long as the file is."""
    settings = tiny_context.settings
    (tmp_path / "door").symlink_to(settings.home)
    for folder in (settings.home, settings.data_folder, tmp_path / "door"):
        with pytest.raises(BackupError, match="outside of the home"):
            back_up(settings, folder / "backup.tar", now=tiny_context.now)
        assert not (folder / "backup.tar").exists()


def test_what_cannot_be_written_is_told_without_the_names_of_images(tiny_context, tmp_path, take):
    """They may say who a person is, and what a command says ends up in journals and mails."""
    file = take()
    image = tiny.images_of(tiny_context, tiny.people(tiny_context)[0])[0]
    told = image.relative_to(tiny_context.settings.data_folder).as_posix()
    with tarfile.open(file) as old, tarfile.open(tmp_path / "twice.tar", "w") as twice:
        for member in old:
            for _ in range(1 + member.name.endswith(told)):
                twice.addfile(member, old.extractfile(member))
    said = expunge(
        tiny.settings_of(tmp_path / "restored"), "restore", str(tmp_path / "twice.tar"), "--nothing-newer", status=1
    )
    assert image.name not in said
    assert "File exists" in said
    absent = str(tmp_path / "absent.tar")
    assert absent in expunge(tiny.settings_of(tmp_path / "restored"), "restore", absent, "--nothing-newer", status=1)


@pytest.mark.parametrize("unfit", ["Jose\u0301", "x" * 257, "a\u200bb"])
def test_an_id_that_nobody_can_have_is_told_by_its_line(tiny_context, tmp_path, take, unfit):
    people, settings = tmp_path / "people.txt", tiny.settings_of(tmp_path / "restored")
    people.write_text(f"zoe\n\n{unfit}\n", encoding="utf-8")
    words = ("restore", str(take()), "--nothing-newer", "--asked", str(people))
    said = expunge(settings, *words, status=1)
    assert f"line 3 of {people}" in said
    assert unfit not in said
    assert not list(settings.home.glob("*"))


def test_the_commands(tiny_context, tmp_path):
    settings = tiny_context.settings
    file, home = tmp_path / "b.tar", tmp_path / "restored"
    assert "files" in expunge(settings, "backup", str(file))
    assert "exists" in expunge(settings, "backup", str(file), status=1)
    inside = tiny.settings_of(home)
    assert "either --erased-since" in expunge(inside, "restore", str(file), status=1)
    streamed = subprocess.run(
        [sys.executable, "-m", "service.cli", "backup", "-"],
        env=environment(settings),
        capture_output=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    ).stdout
    people = tmp_path / "people.txt"
    people.write_text("nobody-we-know\n\n")
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "restore", "-", "--nothing-newer", "--asked", str(people)],
        env=environment(inside), input=streamed, capture_output=True, check=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert b"Filed 1 erasure" in done.stdout
    assert b"nobody-we-know" not in done.stdout + done.stderr
    assert "no home" not in expunge(tiny.settings_of(tmp_path / "none"), "backup", str(tmp_path / "c.tar"), status=1)
    assert not (tmp_path / "none" / "expunge.db").exists()


@pytest.mark.parametrize("where", ["database", "file"])
def test_a_backup_on_a_full_disk_leaves_none(tiny_context, tmp_path, where):
    """The limit of a file's size stands for the disk's end."""
    file = tmp_path / "to" / "backup.tar"
    n_blocks = 100 if where == "database" else (tiny_context.settings.home / "expunge.db").stat().st_size // 1024 + 60
    command = f"ulimit -f {n_blocks}; trap '' XFSZ; exec {sys.executable} -m service.cli backup {file}"
    done = subprocess.run(
        ["bash", "-c", command],
        env=environment(tiny_context.settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1, done.stderr
    assert ("Expected to copy the database" if where == "database" else "Expected to write the backup") in done.stderr
    assert list(file.parent.iterdir()) == []


def test_what_a_killed_backup_left_goes_with_the_worker(tiny_context, tmp_path):
    from service.erasure import leftovers

    settings = tiny_context.settings
    expunge(settings, "backup", str(tmp_path / "b.tar"), fail_at="backup.database", status=-signal.SIGKILL)
    assert list(settings.home.glob(".backing-up-*"))
    leftovers.sweep(tiny_context)
    assert not list(settings.home.glob(".backing-up-*"))


def test_postgresql(tiny_template, tmp_path, clock, postgres, monkeypatch):
    """pg_dump and pg_restore; the newer database is left as it is."""
    monkeypatch.setenv("PATH", f"{postgres.programs}:{os.environ['PATH']}")
    urls = [postgres.create_database() for _ in range(2)]
    there, here = (
        tiny.settings_of(tmp_path / name, database_url=url) for name, url in zip(("there", "here"), urls, strict=True)
    )
    shutil.copytree(tiny_template / "data", there.data_folder)
    shutil.copy(tiny_template / "recipe.json", there.home)
    context = replace(Context.open(there), now=clock)
    train_production(context, seed=0)
    back_up(there, tmp_path / "b.tar", now=clock)
    person = tiny.people(context)[0]
    tiny.finish(context, tiny.judge_run(context, person))
    n_leaves = len(log_of(context))
    context.engine.dispose()

    with pytest.raises(BackupError, match="as the backup is"):
        restore(tiny.settings_of(tmp_path / "other"), tmp_path / "b.tar", asked=[], now=clock)
    done = restore(here, tmp_path / "b.tar", newer=urls[0], asked=[], now=clock)
    assert (done.settled.n_filed, done.settled.is_served) == (1, False)
    restored = replace(Context.open(here), now=clock)
    assert len(log_of(restored)) == n_leaves + 1
    assert claim(restored, tiny.POLICY) is not None  # the numbers of events go on
    restored.engine.dispose()
    with pytest.raises(BackupError, match="empty database"):
        restore(tiny.settings_of(tmp_path / "again", database_url=urls[1]), tmp_path / "b.tar", asked=[], now=clock)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError, match="postgresql-client"):
        back_up(there, tmp_path / "c.tar", now=clock)
    for url in urls:
        postgres.drop_database(url)
