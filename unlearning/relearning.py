"""Relearning: a few steps on some of the images that were to be forgotten, and how fast the others come back.

A model that merely hides what it learned of a subject answers like a retrained one, until somebody trains it on a
little of the subject: then it comes back faster ("relearning attacks", e.g. arXiv 2507.20573). So each model is trained
for `STEPS` steps on one half of the forget set, and after each step its margins are taken of both halves: of the one
that it just learned again, and of the other.

The steps are those of the recipe's training (cross-entropy, its optimiser and momentum), without augmentation, class
weights and weight decay, at a fixed share of its highest learning rate. A step takes the whole half and as many
retained images, at least `FEWEST_RETAINED`: with the half alone one step teaches any model to answer the half's class
whatever it is shown, and nothing is told from anything. The network is in eval mode, with the norms' statistics as they
are. Which images are in which half, and which retained ones come at which step, is a function of their numbers alone,
so that all models of one forget set take the same steps, without any randomness.

Steps, rate and retained images were chosen on the AT&T subject s34, on whom methods are tuned, and two drawn ones: at
a tenth of the highest rate models differ by the luck of two steps more than by what they know, at a hundredth nothing
moves, and further steps told less or as much.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unlearning.recipes import Recipe

if TYPE_CHECKING:  # whoever plans, reads or purges banks needs the constants and has no use for torch
    import torch
    from torch import nn

    from unlearning.training import Examples

VERSION = 1
"""Changes with every change of the steps or of the halves: whoever keeps what came of them keeps it in the key."""
STEPS = 2
RATE_SHARE = 0.03
"""Learning rate, as a share of the recipe's highest."""
FEWEST_RETAINED = 16
_SEED = 20250720


def settings() -> dict[str, int | float]:
    """Returns what the steps are, for whoever keeps what came of them."""
    return {"version": VERSION, "steps": STEPS, "rate_share": RATE_SHARE, "fewest_retained": FEWEST_RETAINED}


def halves(n_images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns which of the images are learned again and which are not, each ascending; of an odd number one less is.

    A single image is learned again, and there is no other.
    """
    order = np.random.default_rng([_SEED, n_images]).permutation(n_images)
    n_own = max(1, n_images // 2)
    return np.sort(order[:n_own]), np.sort(order[n_own:])


def retained(n_part: int, n_retain: int) -> NDArray[np.int64]:
    """Returns which of the retained images come beside `n_part` images at each step, `(STEPS, n)`."""
    rng = np.random.default_rng([_SEED, n_part, n_retain])
    n = min(n_retain, max(FEWEST_RETAINED, n_part))
    return np.stack([rng.choice(n_retain, n, replace=False) for _ in range(STEPS)])


def relearn(
    model: nn.Module, part: Examples, beside: Examples, *, recipe: Recipe, device: torch.device
) -> Iterator[nn.Module]:
    """Yields a copy of the model, in eval mode, after each of `STEPS` steps; always the same copy.

    Args:
        part: to learn again, all at each step.
        beside: the retained images of all steps, as many at each.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from unlearning.descent import FlatWeights
    from unlearning.models import to_inputs
    from unlearning.training import OPTIMISERS

    learner = copy.deepcopy(model).to(device).eval()
    optimiser = OPTIMISERS[recipe.optimiser](FlatWeights(learner), momentum=recipe.momentum, weight_decay=0.0)
    for images, labels in zip(beside.images.chunk(STEPS), beside.labels.chunk(STEPS), strict=True):
        inputs = to_inputs(torch.cat([part.images, images]).to(device))
        loss = cross_entropy(learner(inputs), torch.cat([part.labels, labels]).to(device))
        loss.backward()
        optimiser.step(RATE_SHARE * recipe.learning_rate)
        yield learner
