"""Relearning: the same steps for every model, and a naive twin of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.unlearning.test_training import toy
from unlearning.models import to_inputs
from unlearning.recipes import Recipe
from unlearning.relearning import FEWEST_RETAINED, RATE_SHARE, STEPS, halves, relearn, retained
from unlearning.training import Examples, train

CPU = torch.device("cpu")
SGD = Recipe("tiny", "small_resnet", image_size=(16, 12), width=4, epochs=4, batch_size=16, weight_decay=0.1)
ADAM = Recipe("adam", "small_resnet", image_size=(16, 12), width=4, epochs=4, optimiser="adam", learning_rate=1e-3)


def setting() -> tuple[nn.Module, Examples, Examples]:
    """A model, images to learn again, and the retained ones of all steps."""
    data = toy(80)
    model = train(SGD, data.subset(np.arange(40)), n_classes=2, seed=1, device="cpu").model
    return model, data.subset(np.arange(40, 45)), data.subset(retained(5, 40).ravel())


@pytest.mark.parametrize(
    ("recipe", "twin"),
    [
        (SGD, lambda weights, recipe: torch.optim.SGD(
            weights, RATE_SHARE * recipe.learning_rate, momentum=recipe.momentum, nesterov=True
        )),
        (ADAM, lambda weights, recipe: torch.optim.Adam(
            weights, RATE_SHARE * recipe.learning_rate, betas=(recipe.momentum, 0.999)
        )),
    ],
)  # fmt: skip
def test_the_steps_are_those_of_a_plain_loop(recipe: Recipe, twin: Callable[..., torch.optim.Optimizer]) -> None:
    model, part, beside = setting()
    naive = copy.deepcopy(model).eval()
    optimiser = twin(naive.parameters(), recipe)
    per_step = len(beside) // STEPS
    for step, learner in enumerate(relearn(model, part, beside, recipe=recipe, device=CPU)):
        mine = beside.subset(np.arange(step * per_step, (step + 1) * per_step))
        optimiser.zero_grad()
        images, labels = torch.cat([part.images, mine.images]), torch.cat([part.labels, mine.labels])
        cross_entropy(naive(to_inputs(images)), labels).backward()
        optimiser.step()
        for name, value in learner.state_dict().items():
            torch.testing.assert_close(value, naive.state_dict()[name], rtol=1e-3, atol=1e-5)
    assert step == STEPS - 1


def test_the_model_stays_as_it_is_and_nothing_is_random() -> None:
    model, part, beside = setting()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    ends = [list(relearn(model, part, beside, recipe=SGD, device=CPU))[-1].state_dict() for _ in range(2)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in before)
    assert any(not torch.equal(ends[0][name], before[name]) for name in before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("n", [1, 2, 5, 10, 101])
def test_halves_are_all_images_once(n: int) -> None:
    first, second = halves(n)
    assert sorted([*first, *second]) == list(range(n))
    assert len(first) == max(1, n // 2)
    assert np.array_equal(first, halves(n)[0])


@pytest.mark.parametrize(("n_part", "n_retain"), [(5, 300), (40, 300), (5, 7)])
def test_retained_images_come_beside(n_part: int, n_retain: int) -> None:
    rows = retained(n_part, n_retain)
    assert rows.shape == (STEPS, min(n_retain, max(n_part, FEWEST_RETAINED)))
    assert all(len(set(row)) == len(row) for row in rows)
    assert rows.min() >= 0
    assert rows.max() < n_retain
