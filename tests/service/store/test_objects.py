"""The shared storage: on a folder, in memory, and on a server that speaks S3."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import col, delete

from service.context import Context
from service.errors import StartupError, StorageError, WeightsError
from service.keys.storage_identity import OBJECT
from service.models import deployment, destruction, registry
from service.store.engine import session
from service.store.objects import Storage
from service.store.tables import KeyMark
from tests.object_store import s3_bucket
from tests.service.versions import add_version, engine_of


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/{secrets.token_hex(4)}"
    return f"file://{tmp_path / 'bucket'}" if request.param == "file" else f"memory://{secrets.token_hex(4)}"


@pytest.fixture
def storage(url: str) -> Storage:
    return Storage(url)


def with_storage(context: Context, url: str, home: Path | None = None) -> Context:
    """The same service on a machine with a storage, and perhaps with a home of its own."""
    changes = {"storage_url": url} | ({"home": home} if home else {})
    return Context(context.settings.model_copy(update=changes), context.engine, context.keyring, now=context.now)


def test_an_object_is_written_read_listed_and_destroyed(storage: Storage, url: str) -> None:
    assert storage.fetch("models/a") is None
    assert storage.names("models") == set()
    storage.publish("models/a", b"weights")
    storage.publish("models/a", b"weights")
    storage.publish("banks/b/c", b"")
    assert storage.fetch("models/a") == b"weights"
    assert Storage(url).names("models") == {"models/a"}
    assert storage.names("banks") == {"banks/b/c"}
    assert storage.holds("models/a")
    assert not storage.holds("models/")
    storage.destroy("models/a")
    storage.destroy("models/a")
    assert storage.fetch("models/a") is None
    assert storage.names("models") == set()


def test_what_somebody_else_writes_is_seen_at_once(storage: Storage, url: str) -> None:
    assert storage.names("models") == set()
    Storage(url).publish("models/a", b"1")
    assert storage.names("models") == {"models/a"}


def test_a_cut_off_object_is_written_again(storage: Storage, url: str) -> None:
    Storage(url)._files.pipe_file(storage._path("models/a"), b"wei")
    storage.publish("models/a", b"weights")
    assert storage.fetch("models/a") == b"weights"


def test_a_storage_that_writes_something_else_is_found_out(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    write = storage._files.pipe_file
    monkeypatch.setattr(storage._files, "pipe_file", lambda path, content: write(path, content[:-1]))
    with pytest.raises(StorageError, match="7 bytes; read back 6 bytes"):
        storage.publish("models/a", b"weights")


def test_a_storage_that_keeps_what_it_should_destroy_is_found_out(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish("models/a", b"weights")
    monkeypatch.setattr(storage._files, "rm_file", lambda path: None)
    with pytest.raises(StorageError, match="still lists it"):
        storage.destroy("models/a")


def test_errors_say_the_kind_and_no_secret(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("token 12345 of s3://bucket")

    monkeypatch.setattr(storage._files, "pipe_file", refuse)
    with pytest.raises(StorageError, match="take models/a, got PermissionError") as caught:
        storage.publish("models/a", b"weights")
    assert "12345" not in caught.value.detail
    assert "bucket" not in repr(storage)


@pytest.mark.parametrize("url", ["nowhere://a", "nonsense+x://"])
def test_an_unknown_protocol_is_refused_at_the_start(url: str, context: Context) -> None:
    with pytest.raises(StartupError, match="EXPUNGE_STORAGE_URL"):
        Context.open(context.settings.model_copy(update={"storage_url": url}))


def test_a_server_that_is_not_there_is_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    lost = Storage(f"{bucket}/lost")
    lost._files.retries = 1
    with pytest.raises(StorageError, match="be reached"):
        lost.fetch("models/a")


def test_another_bucket_under_the_name_is_not_taken_for_the_one_used_before(
    context: Context, url: str, tmp_path: Path
) -> None:
    """What it does not list would count as destroyed."""
    worker = with_storage(context, url, tmp_path / "worker")
    digest = add_version(worker, 1)
    assert registry.is_held(worker, digest)
    for other in (f"{url}/empty", f"{url}/of-another-service"):
        elsewhere = with_storage(context, other, tmp_path / "worker")
        if other.endswith("service"):
            Storage(other).publish(OBJECT, b"another")
        for use in (registry.publish, destruction.destroy, registry.is_held):
            with pytest.raises(StorageError, match="not the storage used before"):
                use(elsewhere, "0" * 64 if use is registry.is_held else digest)
    assert registry.is_held(worker, digest)


def test_a_database_that_lost_its_note_takes_the_storage_that_has_this_service_s_object(
    context: Context, url: str, tmp_path: Path
) -> None:
    worker = with_storage(context, url, tmp_path / "worker")
    digest = add_version(worker, 1)
    with session(context.engine) as s:
        s.exec(delete(KeyMark).where(col(KeyMark.name) == "storage"))
        s.commit()
    assert registry.is_held(worker, digest)
    assert worker.known_storage() is not None


def test_weights_reach_a_home_that_keeps_none(context: Context, url: str, tmp_path: Path) -> None:
    worker, replica = with_storage(context, url), with_storage(context, url, tmp_path / "replica")
    digest = add_version(worker, 1)
    assert registry.load_checked(replica, digest) == registry.load_checked(worker, digest)
    assert engine_of(replica, digest).digest == digest
    assert registry.is_held(replica, digest)
    assert not list(tmp_path.glob("replica/**/*.safetensors"))


def test_altered_and_cut_off_objects_are_refused(context: Context, url: str, tmp_path: Path) -> None:
    worker, replica = with_storage(context, url), with_storage(context, url, tmp_path / "replica")
    digest = add_version(worker, 1)
    name, storage = f"models/{digest}.safetensors", Storage(url)
    content = storage.fetch(name)
    for bad in (content[:-100], content[:-1] + bytes([content[-1] ^ 1]), b""):
        storage._files.pipe_file(storage._path(name), bad)
        with pytest.raises(WeightsError, match=f"SHA-256 {digest}.* in the shared storage"):
            registry.load_checked(replica, digest)
    storage.destroy(name)
    with pytest.raises(WeightsError, match="No such file"):
        registry.load_checked(replica, digest)
    assert not registry.is_held(replica, digest)
    deployment.activate_first(worker, digest)  # publishes again what is missing before the pointer moves
    assert registry.load_checked(replica, digest)


def test_without_its_upload_a_version_is_never_staged(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = with_storage(context, f"file://{tmp_path / 'bucket'}")
    first = add_version(worker, 1)
    deployment.activate_first(worker, first)

    def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(worker.storage._files, "pipe_file", fail)
    with pytest.raises(StorageError):
        add_version(worker, 2)
    candidate = next(row.digest for row in registry.versions(worker) if row.digest != first)
    with pytest.raises(StorageError):
        deployment.stage(worker, candidate)
    pointer = deployment.pointer(worker)
    assert (pointer.committed_digest, pointer.staging_digest) == (first, None)
    monkeypatch.undo()
    assert add_version(worker, 2) == candidate
    assert deployment.stage(worker, candidate) == 2


def test_destroyed_weights_leave_the_storage_or_are_not_said_to_be_destroyed(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = with_storage(context, f"file://{tmp_path / 'bucket'}")
    digest = add_version(worker, 1)
    monkeypatch.setattr(worker.storage._files, "rm_file", lambda path: None)
    with pytest.raises(StorageError, match="still lists"):
        destruction.destroy(worker, digest)
    assert (registry.get(worker, digest).state, registry.get(worker, digest).destroyed_at) == ("destroyed", None)
    monkeypatch.undo()
    destruction.destroy(worker, digest)
    assert worker.storage.names("models") == set()
    assert registry.get(worker, digest).destroyed_at is not None


def test_what_comes_back_from_a_backup_is_destroyed_again(context: Context, tmp_path: Path) -> None:
    worker = with_storage(context, f"file://{tmp_path / 'bucket'}")
    digest, stays = add_version(worker, 1), add_version(worker, 2)
    content = registry.load_checked(worker, digest).content
    destruction.destroy(worker, digest)
    worker.storage.publish(f"models/{digest}.safetensors", content)
    registry.path(worker.settings, digest).write_bytes(content)
    with pytest.raises(WeightsError, match="destroyed"):
        registry.load_checked(worker, digest)
    destruction.confirm_destroyed(worker)
    assert worker.storage.names("models") == {f"models/{stays}.safetensors"}
    assert not registry.path(worker.settings, digest).exists()


def test_a_worker_s_new_home_fetches_the_weights_it_starts_from(context: Context, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'bucket'}"
    digest = add_version(with_storage(context, url), 1)
    moved = with_storage(context, url, tmp_path / "moved")
    file = registry.bring_here(moved, digest)
    assert file == registry.path(moved.settings, digest)
    assert file.read_bytes() == registry.load_checked(context, digest).content
