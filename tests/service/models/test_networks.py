"""Converted networks in the registry: bound by the manifest, shared by versions, gone with the last of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.context import Context
from service.errors import WeightsError
from service.models import deployment, destruction, networks, registry
from service.store.objects import Storage
from tests.service.versions import add_version, manifest, write_weights


@pytest.fixture
def openvino(context: Context) -> Context:
    return replace(context, settings=context.settings.model_copy(update={"backend": "openvino"}))


@pytest.fixture
def add(openvino: Context, tmp_path):
    """Adds a version with a network, which here is only stored and not computed by."""

    def add(seed: int, network: bytes = b"a network") -> str:
        return registry.add(openvino, write_weights(tmp_path / "w", seed), manifest(seed), network=network)

    return add


def file_of(context: Context, network: bytes = b"a network"):
    return networks.path(context.settings, networks.digest_of(network))


def test_the_manifest_names_it_and_it_comes_back_checked(openvino, add):
    weights = registry.load_checked(openvino, add(1))
    assert weights.network == b"a network"
    assert weights.manifest == manifest(1, network=networks.digest_of(b"a network"))


def test_a_manifest_without_one_is_as_it_was(context):
    assert "network" not in manifest(1).to_dict()
    assert registry.load_checked(context, add_version(context, 1)).manifest == manifest(1)


@pytest.mark.parametrize("content", [b"another", b"", None])
def test_an_altered_or_missing_one_is_refused_and_nothing_is_staged(openvino, add, content):
    digest = add(1)
    if content is None:
        file_of(openvino).unlink()
    else:
        file_of(openvino).write_bytes(content)
    with pytest.raises(WeightsError, match="Expected the network of this version with SHA-256") as caught:
        deployment.activate_first(openvino, digest)
    assert "\n" not in caught.value.detail
    assert deployment.pointer(openvino) is None


def test_pytorch_does_without(context, openvino, add):
    digest = add(1)
    file_of(openvino).unlink()
    assert registry.load_checked(context, digest).network is None


def test_it_goes_with_the_last_version_that_names_it(openvino, add):
    first, second, third = add(1), add(2), add(3, b"another network")
    destruction.destroy(openvino, first)
    assert file_of(openvino).exists()
    destruction.destroy(openvino, second)
    assert not file_of(openvino).exists()
    assert registry.load_checked(openvino, third).network == b"another network"


def test_it_lies_in_the_shared_storage_and_goes_from_there(openvino, tmp_path, add):
    url = f"file://{tmp_path}/storage"
    shared = replace(openvino, settings=openvino.settings.model_copy(update={"storage_url": url}))
    digest = registry.add(shared, write_weights(tmp_path / "w", 1), manifest(1), network=b"a network")
    name = f"models/{networks.digest_of(b'a network')}.network"
    assert name in Storage(url).names("models")
    file_of(shared).unlink()
    assert registry.load_checked(shared, digest).network == b"a network"
    destruction.destroy(shared, digest)
    assert Storage(url).names("models") == set()
