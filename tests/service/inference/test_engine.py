from __future__ import annotations

import numpy as np
import pytest
import torch

from service.errors import WeightsError
from service.inference.engine import Engine
from service.models import registry
from service.models.building import build_model
from service.models.registry import CheckedWeights
from tests.service.versions import CLASSES, add_version, engine_of, manifest, pixels_of, reference_probabilities

TOLERANCE = 0.03  # bfloat16 keeps 8 bits of a logit


@pytest.fixture
def images():
    return np.stack([pixels_of(seed) for seed in range(20)])


def test_probabilities_are_those_of_the_reference(context, images):
    digest = add_version(context, 1)
    found = engine_of(context, digest).predict(images)
    expected = reference_probabilities(context, digest, images)
    assert found.dtype == np.float32
    assert found.shape == (20, len(CLASSES))
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert np.ptp(expected, axis=0).max() > 0.1  # answers do depend on the image


def test_an_image_gets_the_same_answer_alone_and_in_a_batch(context, images):
    engine = engine_of(context, add_version(context, 1))
    together = engine.predict(images)
    alone = np.concatenate([engine.predict(images[i : i + 1]) for i in range(len(images))])
    np.testing.assert_allclose(alone, together, atol=TOLERANCE)


def test_an_engine_says_what_it_is(context):
    digest = add_version(context, 1)
    engine = engine_of(context, digest, generation=5)
    assert (engine.generation, engine.digest, engine.classes) == (5, digest, CLASSES)
    assert engine.input_shape == (16, 16, 3)
    assert engine.dtype in {"bfloat16", "float32"}


def test_the_model_is_float32_in_eval_mode_without_gradients(context):
    model = build_model(registry.load_checked(context, add_version(context, 1)))
    assert not model.training
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert not any(value.requires_grad or value.is_meta for value in model.parameters())


def test_building_draws_no_random_numbers(context):
    weights = registry.load_checked(context, add_version(context, 1))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    build_model(weights)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small", "small_resnet"])
def test_architectures_go_through_files_unchanged(context, tmp_path, architecture, images):
    from unlearning.models import build, save_weights, to_inputs

    torch.manual_seed(0)
    model = build(architecture, len(CLASSES), channels=3, width=4).eval()
    save_weights(model, tmp_path / "w")
    digest = registry.add(context, tmp_path / "w", manifest(architecture=architecture))
    rebuilt = build_model(registry.load_checked(context, digest))
    inputs = to_inputs(torch.from_numpy(images).permute(0, 3, 1, 2))
    with torch.inference_mode():
        assert torch.equal(rebuilt(inputs), model(inputs))


@pytest.mark.parametrize(
    ("content", "changes"),
    [
        (b"not safetensors", {}),
        (None, {"architecture": "resnet18"}),
        (None, {"classes": ("a", "b")}),
        (None, {"width": 8}),
        (None, {"architecture": "no such network"}),
    ],
)
def test_weights_of_something_else_are_refused(context, content, changes):
    weights = registry.load_checked(context, add_version(context, 1))
    wrong = CheckedWeights(weights.digest, manifest(**changes), content or weights.content)
    with pytest.raises(WeightsError, match="Expected weights of") as caught:
        Engine.load(wrong, 1, "cpu")
    assert "\n" not in caught.value.detail


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_computes_what_the_reference_does(context, images):
    digest = add_version(context, 1)
    engine = Engine.load(registry.load_checked(context, digest), 1, "cuda")
    np.testing.assert_allclose(engine.predict(images), reference_probabilities(context, digest, images), atol=TOLERANCE)
