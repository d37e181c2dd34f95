from __future__ import annotations

import pytest

from service.errors import NotFoundError, WeightsError
from service.keys.keyring import Keyring
from service.models import registry
from service.store.engine import session
from service.store.tables import ModelVersion
from tests.service.versions import add_version, manifest, write_weights

pytestmark = pytest.mark.both_databases


def test_weights_are_named_by_their_content_and_come_back_checked(context, tmp_path):
    weights = write_weights(tmp_path / "w", 1)
    digest = registry.add(context, weights, manifest(1))
    found = registry.load_checked(context, digest)
    assert found.content == weights.read_bytes()
    assert found.manifest == manifest(1)
    assert registry.path(context.settings, digest).name == f"{digest}.safetensors"
    assert registry.get(context, digest).state == "candidate"


def test_adding_twice_changes_nothing(context, tmp_path):
    weights = write_weights(tmp_path / "w", 1)
    assert registry.add(context, weights, manifest(1)) == registry.add(context, weights, manifest(1))
    assert len(registry.versions(context)) == 1


def test_adding_again_completes_what_a_kill_left_without_its_file(context):
    digest = add_version(context, 1)
    registry.path(context.settings, digest).unlink()
    assert add_version(context, 1) == digest
    assert registry.load_checked(context, digest)


def test_altered_weights_are_refused(context):
    digest = add_version(context, 1)
    path = registry.path(context.settings, digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"Expected weights with SHA-256 {digest}"):
        registry.load_checked(context, digest)


def test_missing_weights_are_refused(context):
    digest = add_version(context, 1)
    registry.path(context.settings, digest).unlink()
    with pytest.raises(WeightsError, match="No such file"):
        registry.load_checked(context, digest)


@pytest.mark.parametrize("change", [{"seed": 99}, {"classes": ["a", "b", "c"]}, {"more": 1}])
def test_an_altered_manifest_is_refused(context, change):
    digest = add_version(context, 1)
    with session(context.engine) as s:
        row = s.get(ModelVersion, digest)
        row.manifest = {**row.manifest, **change}
        s.add(row)
        s.commit()
    with pytest.raises(WeightsError, match="signed with this service's key"):
        registry.load_checked(context, digest)


@pytest.mark.parametrize("signature", ["", "not base64!", "AAAA"])
def test_an_altered_signature_is_refused(context, signature):
    digest = add_version(context, 1)
    with session(context.engine) as s:
        row = s.get(ModelVersion, digest)
        row.signature = signature
        s.add(row)
        s.commit()
    with pytest.raises(WeightsError):
        registry.load_checked(context, digest)


def test_another_service_key_is_refused(context, tmp_path):
    digest = add_version(context, 1)
    stranger = type(context)(context.settings, context.engine, Keyring.open(tmp_path / "other"), context.now)
    with pytest.raises(WeightsError):
        registry.load_checked(stranger, digest)


def test_unknown_versions_are_not_found(context):
    with pytest.raises(NotFoundError):
        registry.load_checked(context, "f" * 64)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"channels": 2}, "channels=2"),
        ({"classes": ["a"]}, "at least two classes"),
        ({"classes": ["a", "a"]}, "each once"),
        ({"image_size": (0, 4)}, "image_size"),
    ],
)
def test_a_manifest_is_checked(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        manifest(**change)


def test_a_manifest_survives_json():
    assert type(manifest()).from_dict(manifest().to_dict()) == manifest()
    assert type(manifest()).from_dict(manifest().to_dict()).digest == manifest().digest
    assert manifest(1).digest != manifest(2).digest
