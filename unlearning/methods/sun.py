"""Sun: a fresh classifier, then rounds of noise on a few random tensors, then everything together.

Seventh place of the NeurIPS 2023 machine unlearning challenge. The classifier is drawn anew and one epoch trains
the whole network. In each of the next four epochs nine tensors that belong to no norm are picked at random, N(0,
0.04²) is added to 70 % of their entries, and only they and the norms are trained. The last four epochs train
everything.

Cost: 9 passes over the retain set; the forget set is not read. Defaults: the team's (2e-4 in the noisy epochs;
2e-4, 2e-4, 2e-4, 1e-3 in the last). Interpretations: the first epoch at 1e-3, the rate of the last; where the
network has fewer than nine such tensors all are taken. Known failure: the noise is small, nine passes are expensive.
"""

import dataclasses

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from unlearning.descent import FlatWeights
from unlearning.procedures.feeding import Feed, Momentum, descend, feeding
from unlearning.procedures.modules import layout, norm_parameters, reset
from unlearning.procedures.settings import ApproximateSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class SunSettings(ApproximateSettings):
    """The team's values.

    Attributes:
        first_rates, noisy_rates, last_rates: learning rates, one an epoch, of the three phases.
        n_tensors: tensors picked for each noisy epoch.
        noise: standard deviation of the noise.
        noisy_share: share of a tensor's entries that get noise.
        momentum: of SGD, whose memory does not outlive an epoch of the noisy phase.
        batch_size: examples a step.
    """

    first_rates: tuple[float, ...] = ranged((1e-3,), 0.0, 10.0)
    noisy_rates: tuple[float, ...] = ranged((2e-4, 2e-4, 2e-4, 2e-4), 0.0, 10.0)
    last_rates: tuple[float, ...] = ranged((2e-4, 2e-4, 2e-4, 1e-3), 0.0, 10.0)
    n_tensors: int = ranged(9, 1, 10_000)
    noise: float = ranged(0.04, 0.0, 100.0)
    noisy_share: float = ranged(0.7, 0.0, 1.0)
    momentum: float = ranged(0.9, 0.0, 0.9999)
    batch_size: int = ranged(64, 2, 65_536)


def sun(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: SunSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model with a new classifier, shaken and repaired on `retain`; `forget` is not read."""
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        reset(student.get_submodule(layout(student).classifier))
        everything = dict(student.named_parameters())
        _train(student, everything, settings.first_rates, retain=retain, settings=settings, feed=feed)
        for rate in settings.noisy_rates:
            picked = pick(student, settings.n_tensors, feed)
            shake({name: everything[name] for name in picked}, settings, feed)
            trained = {name: everything[name] for name in (*picked, *norm_parameters(student))}
            _train(student, trained, (rate,), retain=retain, settings=settings, feed=feed)
        _train(student, everything, settings.last_rates, retain=retain, settings=settings, feed=feed)
        return student


def pick(student: nn.Module, n_tensors: int, feed: Feed) -> list[str]:
    """Draws names of different parameters that belong to no norm."""
    spared = norm_parameters(student)
    names = [name for name, _ in student.named_parameters() if name not in spared]
    order = torch.randperm(len(names), generator=feed.generator, device=feed.device)
    return [names[i] for i in order[:n_tensors].tolist()]


@torch.no_grad()
def shake(parameters: dict[str, nn.Parameter], settings: SunSettings, feed: Feed) -> None:
    """Adds noise to a random share of every tensor's entries."""
    for parameter in parameters.values():
        noise = feed.normal_like(parameter, settings.noise)
        parameter.add_(torch.where(feed.mask_like(parameter, settings.noisy_share), noise, 0.0))


def _train(
    student: nn.Module,
    parameters: dict[str, nn.Parameter],
    epoch_rates: tuple[float, ...],
    *,
    retain: Examples,
    settings: SunSettings,
    feed: Feed,
) -> None:
    """Trains the given parameters only, one epoch a rate."""
    student.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimiser = Momentum(FlatWeights(student), momentum=settings.momentum, weight_decay=0.0)
    for rate in epoch_rates:
        for inputs, labels in feed.batches(retain, settings.batch_size):
            descend(optimiser, cross_entropy(feed.outputs(student, inputs), labels), rate)
    student.requires_grad_(True)
