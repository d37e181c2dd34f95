import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from unlearning.errors import MethodError
from unlearning.models import to_inputs
from unlearning.procedures.feeding import feeding
from unlearning.procedures.finishing import margins
from unlearning.procedures.last_layer import Features, features_of, fit_last_layer, last_layer, loss_and_gradient
from unlearning.procedures.settings import DescentSettings
from unlearning.training import Augment

WEIGHTS = {"hold": 0.7, "decay": 0.05}


@pytest.fixture(scope="module")
def plain(as_bound):
    with feeding(as_bound(DescentSettings), 1, "cpu") as feed:
        return dataclasses.replace(feed, augment=Augment())


def drawn(n: int, n_features: int, n_classes: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, n_features, generator=generator, dtype=torch.float64)
    return Features(torch.cat([values, torch.ones(n, 1)], dim=1), torch.arange(n) % n_classes)


def naive(weight, kept, held, target, *, hold, decay):
    """The docstring's formula, as torch has its parts."""
    missed = margins(held.values @ weight.T, held.labels) - target
    size = weight[:, :-1].square().sum()
    return cross_entropy(kept.values @ weight.T, kept.labels) + hold * missed.square().mean() + decay * size


@pytest.mark.parametrize("n_classes", [2, 5])
def test_loss_and_gradient_are_those_of_the_formula(n_classes):
    kept, held = drawn(40, 6, n_classes, 1), drawn(7, 6, n_classes, 2)
    target = torch.linspace(-3.0, 3.0, 7, dtype=torch.float64)
    weight = torch.randn(n_classes, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    twin = weight.clone().requires_grad_()
    expected = naive(twin, kept, held, target, **WEIGHTS)
    expected.backward()
    value, gradient = loss_and_gradient(weight, kept, held, target, **WEIGHTS)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, twin.grad, rtol=1e-10, atol=1e-12)


def test_features_are_what_the_last_layer_turns_into_logits(model, retain, plain):
    found = features_of(model.eval(), [(to_inputs(retain.images), retain.labels)], plain)
    head = last_layer(model)
    with torch.no_grad():
        logits = model(to_inputs(retain.images))
        again = nn.functional.linear(found.values[:, :-1].float(), head.weight, head.bias)
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.values[:, -1], torch.ones(len(retain), dtype=torch.float64))
    assert torch.equal(found.labels, retain.labels)
    assert not head._forward_hooks


def test_the_fit_arrives_where_the_gradient_vanishes(model):
    network = copy.deepcopy(model)
    head = last_layer(network)
    kept, held = (drawn(n, head.in_features, head.out_features, n) for n in (60, 5))
    target = torch.tensor([4.0, -1.0, 0.0, 2.0, -6.0])
    before = loss_and_gradient(_weight(head), kept, held, target.double(), **WEIGHTS)[0]
    fit_last_layer(network, kept, held, target, n_iterations=500, **WEIGHTS)
    after, gradient = loss_and_gradient(_weight(head), kept, held, target.double(), **WEIGHTS)
    assert after < before
    assert float(gradient.abs().max()) < 1e-3


def test_what_is_held_comes_where_it_is_wanted(model):
    network = copy.deepcopy(model)
    head = last_layer(network)
    kept, held = (drawn(n, head.in_features, head.out_features, n) for n in (60, 4))
    target = torch.tensor([4.0, -1.0, 0.0, 2.0])
    fit_last_layer(network, kept, held, target, hold=1_000.0, decay=0.0, n_iterations=500)
    found = margins(held.values @ _weight(head).T, held.labels)
    torch.testing.assert_close(found.float(), target, atol=0.05, rtol=0.0)


def test_a_layer_after_the_last_linear_one_is_told(plain, retain):
    network = nn.Sequential(nn.Flatten(), nn.Linear(retain.images[0].numel(), 3), nn.Tanh())
    with pytest.raises(MethodError, match="what its last linear layer gives"):
        features_of(network, [(to_inputs(retain.images), retain.labels)], plain)


def _weight(head: nn.Linear) -> torch.Tensor:
    return torch.cat([head.weight, head.bias[:, None]], dim=1).detach().double()
