"""From weights to a network: one from elsewhere only by the code it was trained with."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from service.errors import WeightsError
from service.models.building import build_model
from service.models.manifest import Manifest
from service.models.registry import CheckedWeights
from tests.unlearning.test_factories import MODULE
from unlearning.factories import source_of
from unlearning.models import build, save_weights
from unlearning.training import logits

PLAIN = Manifest(
    architecture="small_resnet", width=2, channels=1, image_size=(16, 12), classes=("a", "b"), recipe="own",
    recipe_digest="r", data_manifest_digest="d", seed=0,
)  # fmt: skip


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(scale: str) -> None:
        (tmp_path / "served_nets.py").write_text(MODULE.replace("SCALE", scale))
        sys.modules.pop("served_nets", None)
        importlib.invalidate_caches()
        source_of.cache_clear()

    yield write
    sys.modules.pop("served_nets", None)
    source_of.cache_clear()


def checked(architecture: str, folder: Path, **options: object) -> tuple[CheckedWeights, np.ndarray]:
    """Weights of a fresh model, and what it answers for a few images."""
    import torch

    model = build(architecture, 2, channels=1, width=2).eval()
    path = folder / "model.safetensors"
    digest = save_weights(model, path)
    manifest = dataclasses.replace(PLAIN, architecture=architecture, **options)
    images = torch.arange(4 * 16 * 12).reshape(4, 1, 16, 12).to(torch.uint8)
    return CheckedWeights(digest, manifest, path.read_bytes()), logits(model, images)


def answers(weights: CheckedWeights) -> np.ndarray:
    import torch

    return logits(build_model(weights), torch.arange(4 * 16 * 12).reshape(4, 1, 16, 12).to(torch.uint8))


def test_a_factory_s_network_is_rebuilt_with_what_is_not_among_its_weights(module, tmp_path):
    module("0.5")
    name = "served_nets:build"
    weights, said = checked(name, tmp_path, architecture_source=source_of(name))
    np.testing.assert_allclose(answers(weights), said, atol=1e-5)


def test_weights_are_not_served_by_other_code_than_they_were_trained_with(module, tmp_path):
    module("0.5")
    name = "served_nets:build"
    weights, _ = checked(name, tmp_path, architecture_source=source_of(name))
    module("0.25")
    with pytest.raises(WeightsError, match="Expected the module of served_nets:build as it was trained with"):
        build_model(weights)


def test_a_network_that_computes_while_it_is_made_is_served(tmp_path):
    weights, said = checked("regnet_y_400mf", tmp_path)
    np.testing.assert_allclose(answers(weights), said, atol=1e-4)


def test_a_manifest_without_a_source_keeps_its_digest():
    assert "architecture_source" not in PLAIN.to_dict()
    assert Manifest.from_dict(PLAIN.to_dict()) == PLAIN
    other = dataclasses.replace(PLAIN, architecture_source="sha256:1")
    assert Manifest.from_dict(other.to_dict()) == other
    assert other.digest != PLAIN.digest
