"""Models: one preprocessing, any architecture by name, weights that survive the disk and nothing else."""

import hashlib

import pytest
import safetensors.torch
import torch
from torch import fx, nn
from torch.nn.functional import avg_pool2d

from unlearning.errors import RecipeError, WeightsError
from unlearning.models import (
    ARCHITECTURES,
    EyeRegion,
    build,
    known_architecture,
    load_weights,
    save_weights,
    start_from,
    to_inputs,
    weights_digest,
)


def random_images(n: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(
        256, (n, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(7)
    )


class TestToInputs:
    def test_black_and_white_lie_symmetrically_two_units_from_grey(self):
        inputs = to_inputs(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
        assert inputs.flatten().tolist() == [-127.5 / 64, 127.5 / 64]

    def test_is_the_naive_formula_channels_last(self):
        images = random_images(3, 3, 10, 8)
        inputs = to_inputs(images)
        assert torch.equal(inputs, (images.float() - 127.5) / 64)
        assert inputs.is_contiguous(memory_format=torch.channels_last)

    def test_leaves_the_images_alone_and_gives_the_dtype_asked_for(self):
        images = random_images(2, 1, 8, 8)
        before = images.clone()
        assert to_inputs(images, torch.bfloat16).dtype == torch.bfloat16
        assert torch.equal(images, before)

    @pytest.mark.parametrize("images", [torch.zeros(2, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)])
    def test_refuses_other_shapes_and_dtypes(self, images):
        with pytest.raises(RecipeError, match=r"Expected images as uint8 \(n, channels, height, width\)"):
            to_inputs(images)


class TestEyeRegion:
    def test_is_the_middle_band_without_its_local_mean(self):
        x = to_inputs(random_images(2, 3, 64, 52))
        naive = x[:, :, 9:44, 5:47]
        naive = (naive - avg_pool2d(naive, 3, stride=1, padding=1))[:, :, 1:-1, 1:-1]
        torch.testing.assert_close(EyeRegion()(x), naive, rtol=0, atol=1e-5)

    def test_light_alone_does_not_show(self):
        bright = torch.full((1, 1, 64, 52), 1.5)
        torch.testing.assert_close(EyeRegion()(bright), torch.zeros(1, 1, 33, 40), rtol=0, atol=1e-6)


class TestBuild:
    @pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mobilenet_v3_small"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_gives_logits_and_can_be_trained_and_traced(self, architecture, channels):
        model = build(architecture, 5, channels=channels, width=4).train()
        logits = model(to_inputs(random_images(4, channels, 40, 36)))
        assert logits.shape == (4, 5)
        logits.sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        fx.Tracer().trace(model)

    @pytest.mark.parametrize("architecture", ["small_resnet", "eyes_resnet"])
    @pytest.mark.parametrize("size", [(8, 8), (9, 13), (96, 80)])
    def test_small_networks_take_any_size_from_eight_pixels(self, architecture, size):
        assert build(architecture, 2, width=2).eval()(to_inputs(random_images(2, 1, *size))).shape == (2, 2)

    @pytest.mark.parametrize(
        ("architecture", "taken", "refused"),
        [
            ("swin_t", (8, 64, 224), ()), ("resnet50", (8, 64), ()), ("efficientnet_b0", (8,), ()),
            ("googlenet", (15,), (14,)),
            ("vgg11", (32,), (31,)), ("densenet121", (32,), (16,)), ("convnext_tiny", (32,), (31,)),
            ("squeezenet1_1", (32,), (16,)), ("alexnet", (63,), (62,)), ("inception_v3", (75,), (74,)),
            ("vit_b_16", (224,), (64, 256)), ("maxvit_t", (224,), (64, 256)),
        ],
    )  # fmt: skip
    def test_torchvision_s_networks_take_the_sizes_that_the_documentation_says(self, architecture, taken, refused):
        with torch.device("meta"):  # no numbers, only shapes
            model = build(architecture, 3, channels=3).eval()
            for side in taken:
                assert model(torch.zeros(2, 3, side, side)).shape == (2, 3)
            for side in refused:
                with pytest.raises((RuntimeError, AssertionError, ValueError)):
                    model(torch.zeros(2, 3, side, side))

    def test_width_widens(self):
        narrow, wide = (sum(p.numel() for p in build("small_resnet", 2, width=w).parameters()) for w in (4, 8))
        assert wide > 3 * narrow

    def test_second_classifiers_of_torchvision_are_left_out(self):
        model = build("googlenet", 3).train()
        assert isinstance(model(to_inputs(random_images(2, 1, 64, 64))), torch.Tensor)

    def test_an_unknown_name_is_told_what_is_known(self):
        assert not known_architecture("resnet19")
        with pytest.raises(RecipeError, match=r"Unknown architecture 'resnet19'.*eyes_resnet.*torchvision"):
            build("resnet19", 2)

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"n_classes": 1}, "n_classes=1"),
            ({"n_classes": 2, "channels": 4}, "channels=4"),
            ({"n_classes": 2, "width": 0}, "width=0"),
        ],
    )
    def test_refuses_numbers_out_of_range(self, options, sentence):
        with pytest.raises(RecipeError, match=sentence):
            build("small_resnet", **options)


class TestWeights:
    @pytest.fixture
    def model(self) -> nn.Module:
        model = build("eyes_resnet", 2, width=4)
        model(to_inputs(random_images(8, 1, 32, 32)))  # gives the statistics of the norms something to hold
        return model.eval()

    def test_come_back_as_they_were(self, model, tmp_path):
        digest = save_weights(model, tmp_path / "deep" / "model.safetensors")
        loaded = load_weights(build("eyes_resnet", 2, width=4), tmp_path / "deep" / "model.safetensors", digest=digest)
        assert not loaded.training
        inputs = to_inputs(random_images(4, 1, 32, 32))
        assert torch.equal(loaded(inputs), model(inputs))

    def test_the_digest_is_that_of_the_file_and_of_the_values(self, model, tmp_path):
        digest = save_weights(model, tmp_path / "a.safetensors")
        assert digest == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
        assert digest == weights_digest(tmp_path / "a.safetensors")
        assert digest == save_weights(model.to(memory_format=torch.channels_last), tmp_path / "b.safetensors")

    def test_are_float32_on_disk_and_nothing_else_is_left_there(self, model, tmp_path):
        save_weights(model.to(torch.bfloat16), tmp_path / "model.safetensors")
        tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
        assert {t.dtype for t in tensors.values()} == {torch.float32, torch.int64}
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    def test_other_bytes_than_registered_are_refused_before_they_are_read(self, model, tmp_path):
        path = tmp_path / "model.safetensors"
        digest = save_weights(model, path)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(WeightsError, match="with the SHA-256"):
            load_weights(model, path, digest=digest)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_a_missing_file_is_named(self, model, tmp_path):
        with pytest.raises(WeightsError, match=r"Cannot read weights gone.safetensors: No such file"):
            load_weights(model, tmp_path / "gone.safetensors")

    def test_a_truncated_file_is_refused(self, model, tmp_path):
        path = tmp_path / "model.safetensors"
        save_weights(model, path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(WeightsError, match="not a safetensors file"):
            load_weights(model, path)

    def test_another_architecture_is_refused(self, model, tmp_path):
        save_weights(model, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match="another architecture"):
            load_weights(build("eyes_resnet", 2, width=8), tmp_path / "model.safetensors")


class TestStartFrom:
    def saved(self, tmp_path, n_classes=3, **options):
        torch.manual_seed(1)
        model = build("resnet18", n_classes, **options)
        return model, tmp_path / "given.safetensors", save_weights(model, tmp_path / "given.safetensors")

    def test_takes_over_everything_for_as_many_classes(self, tmp_path):
        given, path, digest = self.saved(tmp_path)
        started = start_from(build("resnet18", 3), path, digest=digest)
        for name, value in given.state_dict().items():
            torch.testing.assert_close(started.state_dict()[name], value, rtol=0, atol=0)

    def test_draws_the_classifier_anew_for_other_classes(self, tmp_path):
        given, path, digest = self.saved(tmp_path, n_classes=1000)
        fresh = build("resnet18", 3)
        drawn = fresh.fc.weight.detach().clone()
        started = start_from(fresh, path, digest=digest)
        torch.testing.assert_close(started.fc.weight, drawn, rtol=0, atol=0)
        torch.testing.assert_close(started.layer4[0].conv1.weight, given.layer4[0].conv1.weight, rtol=0, atol=0)

    @pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "squeezenet1_1", "convnext_tiny"])
    def test_finds_the_classifier_of_other_architectures(self, architecture, tmp_path):
        path = tmp_path / "given.safetensors"
        digest = save_weights(build(architecture, 7, channels=3), path)
        assert start_from(build(architecture, 2, channels=3), path, digest=digest).eval()(
            to_inputs(random_images(2, 3, 64, 64))
        ).shape == (2, 2)

    def test_refuses_other_architectures_channels_and_bytes(self, tmp_path):
        _, path, digest = self.saved(tmp_path, channels=3)
        with pytest.raises(WeightsError, match="number of channels: they differ at conv1"):
            start_from(build("resnet18", 3, channels=1), path, digest=digest)
        with pytest.raises(WeightsError, match="another architecture"):
            start_from(build("resnet34", 3, channels=3), path, digest=digest)
        with pytest.raises(WeightsError, match="with the SHA-256"):
            start_from(build("resnet18", 3, channels=3), path, digest="0" * 64)
