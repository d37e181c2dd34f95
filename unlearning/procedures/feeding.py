"""Batches, learning rates, optimisers and losses that all methods share."""

import contextlib
import copy
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from unlearning.convolution import small_maps_as_products
from unlearning.descent import Adam, FlatWeights
from unlearning.devices import resolve_device, resolve_dtype, seeded
from unlearning.errors import MethodError
from unlearning.models import to_inputs
from unlearning.procedures.settings import DescentSettings, Settings
from unlearning.training import Augment, Examples, arithmetic, batches, class_weights


@dataclass(frozen=True)
class Feed:
    """Augments batches and runs networks as the recipe's own training does; all draws come from one seed.

    Attributes:
        device: of all computations.
        dtype: of the arithmetic; weights are float32 whatever it is.
        augment: how images vary.
        generator: on `device`; draws order, augmentation and whatever a method draws.
    """

    device: torch.device
    dtype: torch.dtype
    augment: Augment
    generator: torch.Generator

    def batches(self, examples: Examples, batch_size: int, epochs: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields shuffled batches for some epochs: inputs float32 `(b, channels, height, width)`, labels `(b,)`."""
        resident = examples.to(self.device)
        passes = (
            batches(resident, batch_size, generator=self.generator, augment=self.augment, device=self.device)
            for _ in range(math.ceil(epochs))
        )
        return itertools.islice(itertools.chain.from_iterable(passes), n_steps(len(examples), batch_size, epochs))

    def endless(self, examples: Examples, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Returns shuffled batches, epoch after epoch, without end."""
        while True:
            yield from self.batches(examples, batch_size)

    def outputs(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Returns float32 logits `(b, n_classes)`, computed in the feed's arithmetic.

        Raises:
            MethodError: a batch norm in training mode has a single value to normalise.
        """
        try:
            with arithmetic(self.device, self.dtype):
                outputs = model(inputs)
        except ValueError as error:
            if len(inputs) > 1:
                raise
            raise MethodError(
                f"Expected more than one image a batch: {type(model).__name__} normalises over the batch alone where "
                "maps have shrunk to one pixel. Choose a method that does not train on the forget set by itself."
            ) from error
        return outputs.float()

    def teach(self, teacher: nn.Module, inputs: Tensor) -> Tensor:
        """Returns a teacher's float32 logits `(b, n_classes)`, through which no gradient flows."""
        with torch.no_grad():
            return self.outputs(teacher, inputs)

    def student(self, model: nn.Module) -> nn.Module:
        """Returns a copy of a network to be changed: on the device, channels-last, in training mode, all trainable."""
        changed = copy.deepcopy(model).to(self.device)
        return changed.to(memory_format=torch.channels_last).train().requires_grad_(True)

    def normal_like(self, tensor: Tensor, std: float) -> Tensor:
        """Draws N(0, std²) in the shape of a tensor."""
        return std * torch.randn(tensor.shape, generator=self.generator, device=self.device)

    def mask_like(self, tensor: Tensor, share: float) -> Tensor:
        """Draws a boolean mask in the shape of a tensor with exactly round(share · size) places set."""
        chosen = torch.randperm(tensor.numel(), generator=self.generator, device=self.device)
        mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=self.device)
        mask[chosen[: round(share * tensor.numel())]] = True
        return mask.view(tensor.shape)


@contextlib.contextmanager
def feeding(settings: Settings, seed: int, device: str | torch.device) -> Iterator[Feed]:
    """Opens the one source of randomness of a run; the caller's global random state is as it was afterwards."""
    where = resolve_device(device)
    recipe = settings.recipe
    augment = Augment(recipe.shift, recipe.flip) if recipe else Augment()
    dtype = resolve_dtype(recipe.dtype, where) if recipe else torch.float32
    with seeded(_stream(seed, "layers"), where) as generator:
        yield Feed(where, dtype, augment, generator.manual_seed(_stream(seed, "feed")))


def _stream(seed: int, purpose: str) -> int:
    """Returns a seed for one purpose. Generators of equal seeds draw correlated numbers: noise from the seed a layer
    was initialised with partly cancels the layer, be it drawn here or when the original was trained."""
    digest = hashlib.sha256(f"unlearning/{purpose}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def n_steps(n_examples: int, batch_size: int, epochs: float) -> int:
    """Returns the number of batches in `epochs` passes over the examples, at least one for a positive number."""
    steps = round(epochs * math.ceil(n_examples / batch_size))
    return max(steps, 1) if epochs > 0 else 0


def cosine(highest: float, steps: int, lowest: float = 0.0) -> Iterator[float]:
    """Returns one learning rate a step, from `highest` at the first towards `lowest` after the last."""
    for step in range(steps):
        yield lowest + (highest - lowest) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def one_cycle(highest: float, steps: int) -> Iterator[float]:
    """Returns one learning rate a step: linear up to `highest` over a fifth of the steps, then cosine towards 0."""
    rising = max(1, round(0.2 * steps))
    for step in range(1, min(rising, steps)):
        yield highest * step / rising
    if steps:
        yield from cosine(highest, steps - rising + 1)


def rates(settings: DescentSettings, n_examples: int) -> Iterator[float]:
    """Returns the learning rate of every step that the settings' epochs over so many examples have."""
    steps = n_steps(n_examples, settings.batch_size, settings.epochs)
    if settings.schedule == "cosine":
        return cosine(settings.learning_rate, steps)
    if settings.schedule == "one-cycle":
        return one_cycle(settings.learning_rate, steps)
    return itertools.repeat(settings.learning_rate, steps)


class Momentum:
    """SGD with classical momentum, as the authors of most methods have it.

    g ← ∇L + λθ;  v ← μv + g;  θ ← θ − ηv, weight decay λ on kernels and matrices only, as in our training.
    """

    def __init__(self, weights: FlatWeights, *, momentum: float, weight_decay: float) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        self._blocks = weights.blocks(torch.zeros_like(weights.values))

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Takes one step down the gradients, and sets them to zero."""
        for block in self._blocks:
            block.open()
            values, gradients, (velocity,) = block.values, block.gradients, block.others
            if block.decayed and self.weight_decay > 0.0:
                gradients.add_(values, alpha=self.weight_decay)
            velocity.mul_(self.momentum).add_(gradients)
            values.add_(velocity, alpha=-learning_rate)
            block.close()


Optimiser = Momentum | Adam


def sgd(student: nn.Module, settings: DescentSettings) -> Momentum:
    """Returns descent over a network's trainable weights with the settings' momentum and weight decay."""
    return Momentum(FlatWeights(student), momentum=settings.momentum, weight_decay=settings.weight_decay)


def adam(student: nn.Module, settings: DescentSettings) -> Adam:
    """Returns Adam over a network's trainable weights with the settings' first moment and weight decay."""
    return Adam(FlatWeights(student), momentum=settings.momentum, weight_decay=settings.weight_decay)


def descend(
    optimiser: Optimiser, loss: Tensor, learning_rate: float, *, on_gradients: Callable[[], None] | None = None
) -> None:
    """Takes one step down the loss; `on_gradients` may change the gradients first."""
    loss.backward()
    if on_gradients is not None:
        on_gradients()
    optimiser.step(learning_rate)


def fit(
    student: nn.Module,
    examples: Examples,
    feed: Feed,
    settings: DescentSettings,
    *,
    optimiser: Optimiser | None = None,
    weights: Tensor | None = None,
) -> None:
    """Trains on cross-entropy as the settings say, with SGD unless another optimiser is given.

    It computes as `unlearning.training.train` does, with the same short cuts, so that costs compare with retraining's.

    Args:
        weights: of the classes `(n_classes,)`; none for plain cross-entropy.
    """
    own = None
    if optimiser is None:
        own = FlatWeights(student, dtype=feed.dtype)
        optimiser = Momentum(own, momentum=settings.momentum, weight_decay=settings.weight_decay)
    steps = feed.batches(examples, settings.batch_size, settings.epochs)
    with small_maps_as_products(student, feed.device):
        for (inputs, labels), rate in zip(steps, rates(settings, len(examples)), strict=True):
            descend(optimiser, cross_entropy(feed.outputs(student, inputs), labels, weight=weights), rate)
    if own is not None:
        own.release()


def balance(model: nn.Module, examples: Examples, power: float) -> Tensor | None:
    """Returns class weights counts^-power for the classes `model` knows; None for power 0."""
    if power == 0.0:
        return None
    return class_weights(examples.labels, count_classes(model, examples), power)


@torch.no_grad()
def count_classes(model: nn.Module, examples: Examples) -> int:
    """Returns the number of the network's logits, as it gives them for one of the examples."""
    was_training, device = model.training, next(model.parameters()).device
    outputs = model.eval().forward(to_inputs(examples.images[:1].to(device)))  # not a call, which would be counted
    model.train(was_training)
    return int(outputs.shape[1])


def distil(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns T² · KL(softmax(teacher / T) ‖ softmax(student / T)), averaged over the batch (Hinton et al. 2015, §2).

    Args:
        student, teacher: logits `(b, n_classes)`.
    """
    return temperature**2 * kl_div(
        log_softmax(student / temperature, dim=1),
        log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def join(*parts: Examples) -> Examples:
    """Returns several sets of examples as one."""
    return Examples(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def needed(forget: Examples | None) -> Examples:
    """Returns the forget set, for a method that needs one.

    Raises:
        MethodError: there is none.
    """
    if forget is None:
        raise MethodError(
            "This method reads the forget set, but none was given; pass it, or choose one that needs none."
        )
    return forget
