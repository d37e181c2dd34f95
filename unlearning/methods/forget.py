"""Forget: in cycles, re-initialise a few random layers and match the original's logits on the retain set.

Eighth place of the NeurIPS 2023 machine unlearning challenge, by the team of that name; the forget set is never
read. In each cycle six layers are picked at random, with replacement, never the classifier or a shortcut, and
re-initialised. Then the student matches the original's logits on retain images with a little Gaussian noise on the
input, by mean squared error, so that what the original learned of the retain set returns, and of others does not.

Cost: per cycle its epochs, through student (backward) and original (forward). Defaults: the team's (cycles of 1, 2
and 2 epochs, 6 layers, σ 0.01, 1e-3 cosine). Interpretations: layers are convolutions, linear layers and
attentions; the noise is added to the standardised input; the cosine falls per step and starts again with each
cycle. Known failure: logits of the original on the retain set say much about faces that are like the forgotten
ones.
"""

import dataclasses

import torch
from torch import nn
from torch.nn.functional import mse_loss

from unlearning.descent import FlatWeights
from unlearning.errors import MethodError
from unlearning.procedures.feeding import Feed, Momentum, cosine, descend, feeding, n_steps
from unlearning.procedures.modules import layout, reset
from unlearning.procedures.settings import ApproximateSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForgetSettings(ApproximateSettings):
    """The team's values.

    Attributes:
        cycle_epochs: epochs of each cycle.
        n_layers: layers drawn anew at the start of a cycle; the same may be picked twice.
        input_noise: standard deviation of the noise on the input.
        learning_rate: highest of each cycle's cosine.
        momentum, weight_decay: of SGD.
        batch_size: examples a step.
    """

    cycle_epochs: tuple[float, ...] = ranged((1.0, 2.0, 2.0), 0.0, 1_000.0)
    n_layers: int = ranged(6, 0, 10_000)
    input_noise: float = ranged(0.01, 0.0, 100.0)
    learning_rate: float = ranged(1e-3, 0.0, 10.0)
    momentum: float = ranged(0.9, 0.0, 0.9999)
    weight_decay: float = ranged(0.0, 0.0, 1.0)
    batch_size: int = ranged(64, 2, 65_536)


def forget_cycles(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: ForgetSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model after all cycles; `forget` is not read."""
    with feeding(settings, seed, device) as feed:
        original = model.to(feed.device).eval()
        student = feed.student(model)
        for epochs in settings.cycle_epochs:
            for name in pick_layers(student, settings.n_layers, feed):
                reset(student.get_submodule(name))
            optimiser = Momentum(FlatWeights(student), momentum=settings.momentum, weight_decay=settings.weight_decay)
            rates = cosine(settings.learning_rate, n_steps(len(retain), settings.batch_size, epochs))
            for inputs, _labels in feed.batches(retain, settings.batch_size, epochs):
                noisy = inputs + feed.normal_like(inputs, settings.input_noise)
                loss = mse_loss(feed.outputs(student, noisy), feed.teach(original, noisy))
                descend(optimiser, loss, next(rates))
        return student


def pick_layers(student: nn.Module, n_layers: int, feed: Feed) -> list[str]:
    """Draws layers with replacement, the classifier and shortcuts excluded.

    Raises:
        MethodError: as `layers_to_draw`.
    """
    names = layers_to_draw(student)
    chosen = torch.randint(len(names), (n_layers,), generator=feed.generator, device=feed.device)
    return [names[i] for i in chosen.tolist()]


def layers_to_draw(student: nn.Module) -> list[str]:
    """Returns the names of all layers but the classifier and shortcuts.

    Raises:
        MethodError: there are none.
    """
    parts = layout(student)
    names = [name for name in parts.layers if name != parts.classifier and name not in parts.shortcuts]
    if not names:
        raise MethodError(f"Expected layers besides classifier and shortcuts in {type(student).__name__}, found none.")
    return names
