"""Training: the same seed gives the same weights, every example is met once an epoch, and models learn."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from unlearning.errors import RecipeError, WeightsError
from unlearning.models import save_weights
from unlearning.recipes import RECIPES, Recipe
from unlearning.training import Augment, Examples, batches, class_weights, logits, schedule_factor, train

CPU = torch.device("cpu")
RECIPE = Recipe("tiny", "small_resnet", image_size=(16, 12), width=4, epochs=4, batch_size=16, shift=1, flip=True)


def toy(n: int = 80, seed: int = 0, size: tuple[int, int] = (16, 12), channels: int = 1) -> Examples:
    """Noise, brighter in the upper half for class 1 and in the lower for class 0: what a mirror image leaves alone."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    images = rng.integers(0, 120, (n, *size, channels))
    half = size[0] // 2
    images[labels == 1, :half] += 100
    images[labels == 0, half:] += 100
    return Examples.from_arrays(images.astype(np.uint8), labels)


def numbered(n: int) -> Examples:
    """Images of one grey each, so that a batch tells which examples it holds."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 8, 8, 1))
    return Examples.from_arrays(images, np.arange(n))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestExamples:
    def test_arrays_come_channels_first_as_copies(self):
        images = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
        images.flags.writeable = False  # as a memory map's are
        data = Examples.from_arrays(images, [0, 1, 0, 1, 1])
        assert data.images.shape == (5, 3, 8, 6)
        assert np.array_equal(data.images.numpy(), np.moveaxis(images, 3, 1))
        assert not np.shares_memory(data.images.numpy(), images)
        assert data.labels.tolist() == [0, 1, 0, 1, 1]
        assert len(data) == 5

    @pytest.mark.parametrize("indices", [[3, 1], np.array([3, 1]), torch.tensor([3, 1])])
    def test_a_subset_keeps_the_order_asked_for(self, indices):
        assert numbered(5).subset(indices).labels.tolist() == [3, 1]

    def test_a_subset_takes_a_mask(self):
        assert numbered(4).subset(np.array([True, False, False, True])).labels.tolist() == [0, 3]

    @pytest.mark.parametrize(
        ("images", "labels"),
        [
            (torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)),
            (torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
            (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
            (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2)),
        ],
    )
    def test_other_shapes_and_dtypes_are_refused(self, images, labels):
        with pytest.raises(RecipeError, match="Expected"):
            Examples(images, labels)

    def test_float_arrays_are_refused(self):
        with pytest.raises(RecipeError, match="Expected images as uint8"):
            Examples.from_arrays(np.zeros((2, 8, 8, 1)), [0, 1])


class TestBatches:
    @pytest.mark.parametrize(
        ("n", "batch_size", "sizes"), [(10, 4, [4, 3, 3]), (8, 4, [4, 4]), (3, 8, [3]), (9, 8, [5, 4])]
    )
    def test_every_example_comes_once_in_even_batches(self, n, batch_size, sizes):
        met = [labels.tolist() for _, labels in batches(numbered(n), batch_size, generator=generator(), device=CPU)]
        assert [len(labels) for labels in met] == sizes
        assert sorted(itertools.chain.from_iterable(met)) == list(range(n))

    def test_images_stay_with_their_labels(self):
        augment = Augment(shift=2, flip=True)
        for inputs, labels in batches(numbered(9), 4, generator=generator(), augment=augment, device=CPU):
            assert torch.equal((inputs * 64 + 127.5).mean(dim=(1, 2, 3)).round().long(), labels)

    def test_the_generator_decides_the_order(self):
        def order(seed: int) -> list[int]:
            return torch.cat([y for _, y in batches(numbered(40), 8, generator=generator(seed), device=CPU)]).tolist()

        assert order(1) == order(1) != order(2)

    def test_the_dtype_is_the_one_asked_for(self):
        inputs, _ = next(batches(numbered(4), 4, generator=generator(), device=CPU, dtype=torch.bfloat16))
        assert inputs.dtype == torch.bfloat16


class TestAugment:
    IMAGES = torch.randint(256, (60, 2, 9, 7), dtype=torch.uint8, generator=generator(3))

    def test_nothing_asked_for_changes_nothing(self):
        assert torch.equal(Augment().vary(self.IMAGES, generator()), self.IMAGES)

    def test_half_are_mirrored(self):
        varied = Augment(flip=True).vary(self.IMAGES, generator())
        assert torch.equal(varied[:30], self.IMAGES[:30].flip(3))
        assert torch.equal(varied[30:], self.IMAGES[30:])

    def test_each_is_shifted_on_its_own_and_the_border_repeated(self):
        varied = Augment(shift=2).vary(self.IMAGES, generator())
        padded = pad(self.IMAGES, (2, 2, 2, 2), mode="replicate")
        seen = set()
        for image, border in zip(varied, padded, strict=True):
            places = [
                (top, left)
                for top in range(5)
                for left in range(5)
                if torch.equal(image, border[:, top : top + 9, left : left + 7])
            ]
            assert len(places) == 1
            seen.update(places)
        assert len(seen) > 15  # of 25 places; below 16 in one of 10^4 sets of 60 draws, and the seed is fixed


class TestClassWeights:
    LABELS = torch.tensor([0] * 6 + [1] * 3 + [3])

    def test_power_zero_is_no_weights(self):
        assert class_weights(self.LABELS, 4, 0.0) is None

    @pytest.mark.parametrize("power", [0.1, 0.5, 1.0])
    def test_are_powers_of_the_counts_with_mean_one(self, power):
        weights = class_weights(self.LABELS, 4, power)
        assert weights[2] == 0
        assert weights[self.LABELS].mean().item() == pytest.approx(1.0)
        assert (weights[1] / weights[0]).item() == pytest.approx(2**power)
        assert (weights[3] / weights[0]).item() == pytest.approx(6**power)


class TestSchedule:
    def test_one_cycle_rises_then_falls_to_nothing(self):
        factors = [schedule_factor(RECIPE, step, 100) for step in range(101)]
        assert max(factors) == factors[20] == 1.0
        assert factors[:21] == sorted(factors[:21])
        assert factors[20:] == sorted(factors[20:], reverse=True)
        assert factors[0] == pytest.approx(1 / 21)
        assert factors[100] == pytest.approx(0.0)

    def test_cosine_starts_at_the_top(self):
        recipe = dataclasses.replace(RECIPE, schedule="cosine")
        assert schedule_factor(recipe, 0, 10) == 1.0
        assert schedule_factor(recipe, 5, 10) == pytest.approx(0.5)

    @pytest.mark.parametrize("n_steps", [1, 2, 3])
    def test_the_shortest_trainings_have_a_rate(self, n_steps):
        assert all(0 < schedule_factor(RECIPE, step, n_steps) <= 1 for step in range(n_steps))


class TestTrain:
    @pytest.mark.parametrize("architecture", ["small_resnet", "eyes_resnet", "resnet18"])
    @pytest.mark.parametrize("dtype", ["float32", "auto"])
    def test_the_same_seed_gives_the_same_file_and_another_seed_another(self, architecture, dtype, tmp_path):
        recipe = dataclasses.replace(RECIPE, architecture=architecture, dtype=dtype, epochs=2, image_size=(32, 24))
        data = toy(40, size=(32, 24))
        digests = [
            save_weights(train(recipe, data, n_classes=2, seed=seed, device=CPU).model, tmp_path / "m.safetensors")
            for seed in (3, 3, 4)
        ]
        assert digests[0] == digests[1] != digests[2]

    def test_other_examples_give_other_weights(self, tmp_path):
        first, second = (
            save_weights(
                train(RECIPE, toy(40, seed), n_classes=2, seed=0, device=CPU).model, tmp_path / "m.safetensors"
            )
            for seed in (0, 1)
        )
        assert first != second

    def test_the_callers_randomness_is_left_alone_and_does_not_matter(self):
        data = toy(32)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = train(RECIPE, data, n_classes=2, seed=0, device=CPU)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        second = train(RECIPE, data, n_classes=2, seed=0, device=CPU)
        assert np.array_equal(logits(first.model, data.images), logits(second.model, data.images))

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("optimiser", ["sgd", "adam"])
    def test_learns_what_can_be_learned(self, dtype, optimiser):
        """64 fresh images of a task without noise in its labels; a coin would get 90 % in one of 10^11 tries."""
        learning_rate = {"sgd": 0.1, "adam": 0.01}[optimiser]
        recipe = dataclasses.replace(RECIPE, dtype=dtype, optimiser=optimiser, learning_rate=learning_rate, epochs=6)
        model = train(recipe, toy(160), n_classes=2, seed=0, device=CPU).model
        fresh = toy(64, seed=1)
        assert (logits(model, fresh.images).argmax(axis=1) == fresh.labels.numpy()).mean() > 0.9

    def test_memorises_labels_without_reason(self):
        """What cannot be known from other examples is learned too, or there were nothing to forget."""
        data = toy(40)
        random_labels = torch.randint(2, (40,), generator=generator(9))
        recipe = dataclasses.replace(RECIPE, epochs=60, width=8, shift=0, flip=False)
        model = train(recipe, Examples(data.images, random_labels), n_classes=2, seed=0, device=CPU).model
        assert (logits(model, data.images).argmax(axis=1) == random_labels.numpy()).mean() > 0.9

    def test_the_model_comes_ready_to_serve(self):
        trained = train(dataclasses.replace(RECIPE, dtype="bfloat16"), toy(40), n_classes=2, seed=0, device=CPU)
        assert not trained.model.training
        assert all(p.dtype == torch.float32 and p.grad is None for p in trained.model.parameters())
        norms = [module for module in trained.model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert all(int(norm.num_batches_tracked) == RECIPE.epochs * 3 for norm in norms)
        assert all(bool((norm.running_var > 0).all()) and bool(norm.running_mean.isfinite().all()) for norm in norms)

    def test_statistics_of_the_norms_are_those_of_the_data(self):
        """In eval mode the stem's norm must see about what it saw in training: mean 0 and variance 1."""
        data = toy(160)
        recipe = dataclasses.replace(RECIPE, epochs=20, flip=False, shift=0)
        model = train(recipe, data, n_classes=2, seed=0, device=CPU).model
        seen = []
        model.norm.register_forward_hook(
            lambda norm, _, out: seen.append((out - norm.bias[:, None, None]) / norm.weight[:, None, None])
        )
        logits(model, data.images)
        assert seen[0].mean(dim=(0, 2, 3)).abs().max() < 0.1
        assert (seen[0].var(dim=(0, 2, 3)) - 1).abs().max() < 0.2

    def test_the_cost_is_counted_in_examples(self):
        trained = train(RECIPE, toy(40), n_classes=2, seed=0, device=CPU)
        assert trained.n_forward == trained.n_backward == 40 * RECIPE.epochs
        assert trained.seconds > 0

    def test_every_epoch_is_told(self):
        told = []
        train(RECIPE, toy(80), n_classes=2, seed=0, device=CPU, on_epoch=lambda *figures: told.append(figures))
        assert [(epoch, epochs) for epoch, epochs, _ in told] == [
            (i, RECIPE.epochs) for i in range(1, RECIPE.epochs + 1)
        ]
        assert all(math.isfinite(loss) for *_, loss in told)
        assert told[-1][2] < told[0][2]

    @pytest.mark.parametrize("name", RECIPES)
    def test_built_in_recipes_run(self, name):
        recipe = dataclasses.replace(RECIPES[name], epochs=1)
        data = toy(8, size=recipe.image_size, channels=recipe.channels)
        trained = train(recipe, data, n_classes=10, seed=0, device=CPU)
        assert logits(trained.model, data.images).shape == (8, 10)

    def test_a_class_without_examples_is_no_obstacle(self):
        recipe = dataclasses.replace(RECIPE, class_weight_power=1.0, epochs=1)
        model = train(recipe, toy(20), n_classes=5, seed=0, device=CPU).model
        assert np.isfinite(logits(model, toy(4).images)).all()

    @pytest.mark.parametrize(
        ("data", "sentence"),
        [
            (toy(1), "expected at least 2 examples, got 1"),
            (toy(4, size=(12, 16)), r"expected images of \(channels, height, width\)=\(1, 16, 12\), got \(1, 12, 16\)"),
            (toy(4, channels=3), r"got \(3, 16, 12\)"),
            (Examples(toy(4).images, torch.tensor([0, 1, 2, 0])), r"Expected labels in \[0, 1\], got \[0, 2\]"),
            (Examples(toy(4).images, torch.tensor([0, 1, -1, 0])), r"got \[-1, 1\]"),
        ],
    )
    def test_what_does_not_fit_the_recipe_is_refused(self, data, sentence):
        with pytest.raises(RecipeError, match=sentence):
            train(RECIPE, data, n_classes=2, seed=0, device=CPU)

    def test_a_loss_that_is_no_number_ends_it(self):
        recipe = dataclasses.replace(
            RECIPE, learning_rate=100.0, warmup_share=0.0, dtype="float32", momentum=0.999, epochs=200
        )
        with pytest.raises(RecipeError, match=r"Loss is nan .* lower the learning rate of recipe 'tiny'"):
            train(recipe, toy(40), n_classes=2, seed=0, device=CPU)


class TestLogits:
    @pytest.fixture
    def model(self) -> nn.Module:
        return train(RECIPE, toy(40), n_classes=2, seed=0, device=CPU).model

    def test_are_float32_and_the_same_whatever_the_batch(self, model):
        images = toy(30).images
        whole = logits(model, images)
        assert whole.dtype == np.float32
        assert whole.shape == (30, 2)
        np.testing.assert_allclose(logits(model, images, batch_size=7), whole, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("training", [True, False])
    def test_leave_the_model_as_it_was(self, model, training):
        model.train(training)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        logits(model, toy(4).images)
        assert model.training is training
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        model.eval()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Needs a CUDA device; run on a machine that has one.")
class TestOnCuda:
    def test_the_same_seed_gives_the_same_weights_and_they_learn(self, tmp_path):
        recipe = dataclasses.replace(RECIPE, architecture="resnet18", image_size=(32, 24), epochs=6)
        data = toy(160, size=(32, 24))
        trained = [train(recipe, data, n_classes=2, seed=seed, device="cuda") for seed in (3, 3, 4)]
        digests = [save_weights(t.model, tmp_path / "m.safetensors") for t in trained]
        assert digests[0] == digests[1] != digests[2]
        fresh = toy(64, seed=1, size=(32, 24))
        assert (logits(trained[0].model, fresh.images).argmax(axis=1) == fresh.labels.numpy()).mean() > 0.9


def test_a_recipe_may_start_from_given_weights(tmp_path):
    """With a learning rate of next to nothing the model stays what it was given; its classifier fits other classes."""
    given = train(RECIPE, toy(), n_classes=2, seed=1, device=CPU).model
    path = tmp_path / "given.safetensors"
    digest = save_weights(given, path)
    barely = dataclasses.replace(
        RECIPE, weights=str(path), weights_sha256=digest, epochs=1, learning_rate=1e-12, weight_decay=0.0
    )
    started = train(barely, toy(), n_classes=2, seed=2, device=CPU).model
    np.testing.assert_allclose(logits(started, toy().images).argmax(1), logits(given, toy().images).argmax(1))
    for name, value in started.named_parameters():
        torch.testing.assert_close(value, given.get_parameter(name), rtol=0, atol=1e-9)
    three = train(barely, toy(), n_classes=3, seed=2, device=CPU).model
    assert logits(three, toy().images).shape == (80, 3)
    torch.testing.assert_close(three.stem.weight, given.stem.weight, rtol=0, atol=1e-9)
    with pytest.raises(WeightsError, match="Cannot read weights"):
        train(dataclasses.replace(barely, weights="absent"), toy(), n_classes=2, seed=2, device=CPU)


def test_passes_without_gradients_are_cut_by_the_size_of_the_images():
    """A ViT-B/16 holds 13 MB an image while it answers: 256 of them at once, whatever the recipe's batch, were 3 GB."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.sizes = nn.Linear(1, 2), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.sizes.append(len(x))
            return self.fc(x.mean(dim=(1, 2, 3))[:, None])

    sizes = {}
    for side in (16, 64, 224, 1024):
        model = Counting()
        logits(model, torch.zeros(300, 1, 1, 1, dtype=torch.uint8).expand(300, 1, side, side))
        sizes[side] = max(model.sizes)
        assert sum(model.sizes) == 300
    assert sizes == {16: 256, 64: 256, 224: 20, 1024: 1}


def test_a_model_that_takes_other_sizes_says_so():
    recipe = Recipe("vit", "vit_b_32", image_size=(16, 12), epochs=1)
    with pytest.raises(RecipeError, match=r"vit_b_32 takes no images of \(16, 12\) pixels .* try \(224, 224\)"):
        train(recipe, toy(), n_classes=2, seed=0, device=CPU)
