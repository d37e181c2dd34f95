"""Sun: a fresh classifier, then rounds of noise on a few random tensors, then everything together.

Seventh place of the NeurIPS 2023 machine unlearning challenge. The classifier is drawn anew. In each of the first five
epochs nine tensors that belong to no norm are picked at random, and only they and the norms are trained. In all of
these but the first epoch N(0, 0.04²) is added beforehand to six of the nine, drawn at random, save those that an
earlier epoch picked. The last four epochs train everything.

Cost: 9 passes over the retain set; the forget set is not read. Defaults: the team's (2e-4 throughout but 1e-3 in the
last epoch, weight decay 5e-4, SGD that starts anew in every epoch; as xcadet/deepunlearn has its code). Where the
network has fewer than nine such tensors all are taken. Known failures: the noise is small; nine passes are expensive;
of a network with few tensors the first picks take nearly all, and hardly any is left that may get noise. For such
networks `noise_on` "entries" adds noise to 70 % of the entries of all tensors picked, in every noisy epoch, and
`first_trains` "everything" lets the first epoch repair the whole network.
"""

import dataclasses
import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from unlearning.descent import FlatWeights
from unlearning.procedures.feeding import Feed, Momentum, descend, feeding
from unlearning.procedures.modules import layout, norm_parameters, reset
from unlearning.procedures.settings import ApproximateSettings, choice, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class SunSettings(ApproximateSettings):
    """The team's values.

    Attributes:
        first_rates, noisy_rates, last_rates: learning rates, one an epoch, of the three phases.
        first_trains: what the first phase trains, "picked" tensors and norms or "everything".
        n_tensors: tensors picked for each epoch of the first two phases.
        noise: standard deviation of the noise.
        noise_on: what gets noise, whole "tensors" of those picked or "entries" of each.
        noisy_share: share of the tensors picked, rounded down, or of each one's entries that get noise.
        momentum: of SGD, whose memory does not outlive an epoch.
        weight_decay: added to the gradients of kernels and matrices, not of norms and biases, as our training does;
            the team decays all.
        batch_size: examples a step.
    """

    first_rates: tuple[float, ...] = ranged((2e-4,), 0.0, 10.0)
    noisy_rates: tuple[float, ...] = ranged((2e-4, 2e-4, 2e-4, 2e-4), 0.0, 10.0)
    last_rates: tuple[float, ...] = ranged((2e-4, 2e-4, 2e-4, 1e-3), 0.0, 10.0)
    first_trains: str = choice("picked", "picked", "everything")
    n_tensors: int = ranged(9, 1, 10_000)
    noise: float = ranged(0.04, 0.0, 100.0)
    noise_on: str = choice("tensors", "tensors", "entries")
    noisy_share: float = ranged(0.7, 0.0, 1.0)
    momentum: float = ranged(0.9, 0.0, 0.9999)
    weight_decay: float = ranged(5e-4, 0.0, 1.0)
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
        norms = {name: everything[name] for name in norm_parameters(student)}
        picked_before: set[str] = set()
        for epoch, rate in enumerate((*settings.first_rates, *settings.noisy_rates)):
            is_first = epoch < len(settings.first_rates)
            trained = everything
            if not is_first or settings.first_trains == "picked":
                picked = {name: everything[name] for name in pick(student, settings.n_tensors, feed)}
                if not is_first:
                    shake(picked, picked_before, settings, feed)
                picked_before |= picked.keys()
                trained = {**picked, **norms}
            _train(student, trained, rate, retain=retain, settings=settings, feed=feed)
        for rate in settings.last_rates:
            _train(student, everything, rate, retain=retain, settings=settings, feed=feed)
        return student


def pick(student: nn.Module, n_tensors: int, feed: Feed) -> list[str]:
    """Draws names of different parameters that belong to no norm."""
    spared = norm_parameters(student)
    names = [name for name, _ in student.named_parameters() if name not in spared]
    order = torch.randperm(len(names), generator=feed.generator, device=feed.device)
    return [names[i] for i in order[:n_tensors].tolist()]


@torch.no_grad()
def shake(picked: dict[str, nn.Parameter], picked_before: set[str], settings: SunSettings, feed: Feed) -> None:
    """Adds noise: to whole tensors, drawn from those picked, that no earlier epoch picked; or to entries of each."""
    if settings.noise_on == "entries":
        for parameter in picked.values():
            noise = feed.normal_like(parameter, settings.noise)
            parameter.add_(torch.where(feed.mask_like(parameter, settings.noisy_share), noise, 0.0))
        return
    n_noisy = math.floor(settings.noisy_share * settings.n_tensors)
    order = torch.randperm(len(picked), generator=feed.generator, device=feed.device)
    names = list(picked)
    for name in [names[i] for i in order[:n_noisy].tolist()]:
        if name not in picked_before:
            picked[name].add_(feed.normal_like(picked[name], settings.noise))


def _train(
    student: nn.Module,
    parameters: dict[str, nn.Parameter],
    rate: float,
    *,
    retain: Examples,
    settings: SunSettings,
    feed: Feed,
) -> None:
    """Trains the given parameters only, for one epoch."""
    student.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimiser = Momentum(FlatWeights(student), momentum=settings.momentum, weight_decay=settings.weight_decay)
    for inputs, labels in feed.batches(retain, settings.batch_size):
        descend(optimiser, cross_entropy(feed.outputs(student, inputs), labels), rate)
    student.requires_grad_(True)
