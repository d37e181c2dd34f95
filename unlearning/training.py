"""Training: one loop for production models, references and methods.

The examples are in memory as uint8; shuffling and augmentation happen on the device, a batch at a time, without a
loader or a second process. The same recipe, examples and seed give the same weights, bit for bit, on one
device with one number of threads.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from unlearning.convolution import small_maps_as_products
from unlearning.descent import SGD, Adam, FlatWeights
from unlearning.devices import resolve_device, resolve_dtype, seeded, stopwatch
from unlearning.errors import RecipeError, staying
from unlearning.factories import require_source
from unlearning.models import ARCHITECTURES, build, start_from, to_inputs
from unlearning.recipes import Recipe

_MOST_AT_ONCE = 256  # images in a pass that computes no gradients
_PIXELS_AT_ONCE = 1 << 20  # of all of them: 256 images of 64×64, 20 of 224×224

OPTIMISERS: dict[str, Callable[..., SGD | Adam]] = {"sgd": SGD, "adam": Adam}

OnEpoch = Callable[[int, int, float], None]
"""Called after each epoch with (epoch from 1, epochs, mean loss of the epoch)."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Labelled images.

    Attributes:
        images: uint8 `(n, channels, height, width)`.
        labels: int64 `(n,)`, each in [0, n_classes).
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise RecipeError(
                "Expected images as uint8 (n, channels, height, width), "
                f"got {self.images.dtype} {tuple(self.images.shape)}."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise RecipeError(
                f"Expected labels as int64 ({len(self.images)},), got {self.labels.dtype} {tuple(self.labels.shape)}."
            )

    @classmethod
    def from_arrays(cls, images: NDArray[np.uint8], labels: ArrayLike) -> "Examples":
        """Returns examples of images uint8 `(n, height, width, channels)` and labels `(n,)`; copies both."""
        if images.dtype != np.uint8 or images.ndim != 4:
            raise RecipeError(
                f"Expected images as uint8 (n, height, width, channels), got {images.dtype} {images.shape}."
            )
        nchw = np.array(np.moveaxis(images, 3, 1), order="C")
        return cls(torch.from_numpy(nchw), torch.from_numpy(np.array(labels, dtype=np.int64)))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: ArrayLike) -> "Examples":
        """Returns the examples at `indices` (integers or a boolean mask), in their order."""
        chosen = torch.as_tensor(np.asarray(indices), device=self.labels.device)
        return Examples(self.images[chosen], self.labels[chosen])

    def to(self, device: torch.device) -> "Examples":
        """Returns the examples on `device`."""
        return Examples(self.images.to(device, non_blocking=True), self.labels.to(device, non_blocking=True))


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation: images shifted by up to `shift` pixels each way (border repeated), half of them mirrored."""

    shift: int = 0
    flip: bool = False

    def vary(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns images `(b, channels, height, width)` varied, each on its own; `generator` lives on their device.

        Their order must be random already: it is the first half that is mirrored.
        """
        b, _, height, width = images.shape
        if self.flip:
            images = torch.cat([images[: b // 2].flip(3), images[b // 2 :]])
        if self.shift:
            top, left = torch.randint(2 * self.shift + 1, (2, b), generator=generator, device=images.device)
            padded = pad(images, (self.shift,) * 4, mode="replicate")
            views = padded.unfold(2, height, 1).unfold(3, width, 1)  # (b, c, 2·shift + 1, 2·shift + 1, h, w), no copy
            images = views[torch.arange(b, device=images.device), :, top, left]
        return images


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model in eval mode with float32 weights, and its cost.

    Attributes:
        seconds: of the training alone, by `unlearning.devices.stopwatch`.
        n_forward, n_backward: examples passed forward and backward.
    """

    model: nn.Module
    seconds: float
    n_forward: int
    n_backward: int


def batches(
    data: Examples,
    batch_size: int,
    *,
    generator: torch.Generator,
    augment: Augment | None = None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Returns one epoch of shuffled batches: inputs `(b, channels, height, width)` of `dtype` and labels `(b,)`.

    Every example comes once. The examples are split evenly over ceil(n / batch_size) batches, whose sizes differ by one
    at most, so no small last batch disturbs the batch statistics.

    Args:
        generator: draws order and augmentation; must live on `device`.
        augment: none for images as they are.
    """
    resident = data.to(device)
    order = torch.randperm(len(resident), generator=generator, device=device)
    augment = augment or Augment()
    for chosen in order.tensor_split(math.ceil(len(resident) / batch_size)):
        images = resident.images.index_select(0, chosen)
        yield to_inputs(augment.vary(images, generator), dtype), resident.labels[chosen]


def class_weights(labels: Tensor, n_classes: int, power: float) -> Tensor | None:
    """Returns the loss weights counts^-power `(n_classes,)`, float32, of mean 1 over the examples; None for power 0.

    A class without examples gets weight 0: it never occurs in the loss.
    """
    if power == 0.0:
        return None
    counts = torch.bincount(labels, minlength=n_classes).double()
    raw = torch.where(counts > 0, counts.clamp(min=1.0) ** -power, 0.0)
    return (raw * counts.sum() / (raw * counts).sum()).float()


@staying()
def train(
    recipe: Recipe,
    data: Examples,
    *,
    n_classes: int,
    seed: int,
    device: str | torch.device = "auto",
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Trains a fresh model of `recipe` on `data`; the result depends on recipe, data, seed and device only.

    Raises:
        WeightsError: the recipe's weights are missing, others, or of another architecture.
        RecipeError: too few examples, images or labels that do not fit the recipe, or a loss that is no number.
        ExitedError: the network's code called `sys.exit`.
    """
    _check(recipe, data, n_classes)
    where = resolve_device(device)
    started = stopwatch(where)
    dtype = resolve_dtype(recipe.dtype, where)
    augment = Augment(recipe.shift, recipe.flip)
    n_steps = recipe.epochs * math.ceil(len(data) / recipe.batch_size)
    step = 0
    with contextlib.ExitStack() as stack:
        generator = stack.enter_context(seeded(seed, where))
        model = fresh_model(recipe, n_classes)
        if recipe.weights:
            start_from(model, Path(recipe.weights), digest=recipe.weights_sha256)
        _try_out(model, recipe, n_classes)
        model = model.to(where).to(memory_format=torch.channels_last).train()
        data = data.to(where)
        weights = class_weights(data.labels, n_classes, recipe.class_weight_power)
        flat = FlatWeights(model, dtype=dtype)
        stack.enter_context(small_maps_as_products(model, where))
        optimiser = OPTIMISERS[recipe.optimiser](flat, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        for epoch in range(1, recipe.epochs + 1):
            total_loss = torch.zeros((), device=where)
            for inputs, labels in batches(data, recipe.batch_size, generator=generator, augment=augment, device=where):
                with arithmetic(where, dtype):
                    outputs = model(inputs)  # (b, n_classes)
                loss = cross_entropy(outputs.float(), labels, weight=weights)
                loss.backward()
                optimiser.step(recipe.learning_rate * schedule_factor(recipe, step, n_steps))
                total_loss += loss.detach() * len(labels)
                step += 1
            mean_loss = float(total_loss) / len(data)
            if not math.isfinite(mean_loss):
                raise RecipeError(
                    f"Loss is {mean_loss} after epoch {epoch}; lower the learning rate of recipe {recipe.name!r}."
                )
            if on_epoch is not None:
                on_epoch(epoch, recipe.epochs, mean_loss)
        flat.release()
    n_seen = recipe.epochs * len(data)
    return Trained(model.eval(), stopwatch(where) - started, n_seen, n_seen)


def fresh_model(recipe: Recipe, n_classes: int) -> nn.Module:
    """Returns an untrained model of a recipe, with weights drawn from torch's global generator.

    Raises:
        RecipeError: the code of a network from elsewhere is not what it was when the recipe was read; as `build`.
    """
    require_source(recipe.architecture, recipe.architecture_source)
    return build(recipe.architecture, n_classes, channels=recipe.channels, width=recipe.width)


def images_at_once(images: Tensor) -> int:
    """Returns how many of the images `(n, channels, height, width)` go through a network in one pass without gradients.

    Fewer the larger they are: what a pass holds in memory grows with the pixels in it, and may be a hundred times them.
    """
    return min(_MOST_AT_ONCE, max(1, _PIXELS_AT_ONCE // (images.shape[2] * images.shape[3])))


def logits(model: nn.Module, images: Tensor, *, batch_size: int | None = None) -> NDArray[np.float32]:
    """Returns the model's float32 logits `(n, n_classes)` of uint8 images `(n, channels, height, width)`.

    Runs in float32 and eval mode on the model's device, and leaves the model in the mode it was in.

    Args:
        batch_size: images a pass; none for `images_at_once`.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            parts = [
                model(to_inputs(part.to(device, non_blocking=True))).float().cpu()
                for part in images.split(batch_size or images_at_once(images))
            ]
    finally:
        model.train(was_training)
    return torch.cat(parts).numpy()


def arithmetic(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """Returns the context in which a model with float32 weights computes in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def schedule_factor(recipe: Recipe, step: int, n_steps: int) -> float:
    """Returns the share of the highest learning rate at `step` of [0, n_steps): 1 at the peak, 0 after the last."""
    n_rising = int(recipe.warmup_share * n_steps) if recipe.schedule == "one-cycle" else 0
    if step < n_rising:
        return (step + 1) / (n_rising + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - n_rising) / (n_steps - n_rising)))


def _try_out(model: nn.Module, recipe: Recipe, n_classes: int) -> None:
    """Passes one image through a network that is not ours: some take one size only, and fail with unclear messages."""
    if recipe.architecture in ARCHITECTURES:
        return
    image = torch.zeros((1, recipe.channels, *recipe.image_size), dtype=torch.uint8)
    try:
        with staying(), torch.inference_mode():
            outputs = model.eval()(to_inputs(image))
    except Exception as error:  # anything: a factory's network is the user's code
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RecipeError(
            f"Recipe {recipe.name!r}: {recipe.architecture} takes no images of {recipe.image_size} pixels "
            f"({reason}); try (224, 224), the only size that most vision transformers take, or a larger image_size."
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape != (1, n_classes):
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise RecipeError(
            f"Recipe {recipe.name!r}: expected {recipe.architecture} to give logits of the shape (1, {n_classes}) for "
            f"one image and {n_classes} classes, got {given}."
        )


def _check(recipe: Recipe, data: Examples, n_classes: int) -> None:
    expected = (recipe.channels, *recipe.image_size)
    if len(data) < 2:
        raise RecipeError(f"Recipe {recipe.name!r}: expected at least 2 examples, got {len(data)}.")
    if tuple(data.images.shape[1:]) != expected:
        raise RecipeError(
            f"Recipe {recipe.name!r}: expected images of (channels, height, width)={expected}, "
            f"got {tuple(data.images.shape[1:])}; pack the data at the recipe's size."
        )
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= n_classes:
        raise RecipeError(f"Expected labels in [0, {n_classes - 1}], got [{low}, {high}].")
