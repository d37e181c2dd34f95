import copy
import dataclasses

import numpy as np
import pytest
import torch

from unlearning.errors import MethodError
from unlearning.methods import oracle_matching as module
from unlearning.methods.finishing import finish, margins
from unlearning.methods.oracle_matching import OracleMatchingSettings, margin_gradients, match, oracle_matching
from unlearning.methods.oracles import OracleExamples, with_oracles
from unlearning.methods.remix import remix
from unlearning.models import to_inputs
from unlearning.training import Examples

LOOSE = {"epochs": 1.0, "n_steps": 20, "n_kept": 0, "damping": 1e-4}


@pytest.fixture(scope="module")
def oracles(forget):
    """Margins of five oracles, each set apart from the others."""
    return np.linspace(-2.0, 2.0, 5)[:, None] + np.linspace(-0.5, 0.5, len(forget))[None]


@pytest.fixture(scope="module")
def run(model, forget, retain, oracles, as_bound):
    def run(seed: int, **options) -> torch.nn.Module:
        settings = as_bound(OracleMatchingSettings, **{**LOOSE, **options})
        return oracle_matching(
            model, with_oracles(forget, oracles), retain, settings=settings, seed=seed, device="cpu"
        ).eval()

    return run


def margins_of(model, examples):
    with torch.no_grad():
        return margins(model(to_inputs(examples.images)), examples.labels).numpy()


@pytest.mark.parametrize("seed", [0, 3, 5, 13])
def test_margins_on_the_forget_set_become_those_of_one_oracle(run, forget, oracles, seed):
    np.testing.assert_allclose(margins_of(run(seed), forget), oracles[seed % 5], atol=0.05)


def test_only_so_many_oracles_are_asked(run, forget, oracles):
    np.testing.assert_allclose(margins_of(run(2, n_oracles=2), forget), oracles[0], atol=0.05)


def test_without_steps_it_is_remix_and_its_finishing_touches(run, model, retain, as_bound, same):
    loosening = as_bound(OracleMatchingSettings, **LOOSE).loosening
    assert len(retain) < module._SETTLED_ON  # so that it settles on all, as remix does
    expected = remix(model, None, retain, settings=loosening, seed=7, device="cpu")
    finish(expected, model, retain, settings=loosening, seed=7, device=torch.device("cpu"))
    assert same(run(7, n_steps=0), expected)


def test_kept_images_stay_where_they_are(run, retain, monkeypatch):
    monkeypatch.setattr(module, "sample", lambda examples, n, feed: examples.subset(np.arange(min(n, len(examples)))))
    before = margins_of(run(1, n_steps=0), retain)
    kept, free = (np.abs(margins_of(run(1, n_kept=n), retain) - before)[:3].max() for n in (3, 0))
    assert kept < 0.05 < free


def test_gradients_of_margins_are_those_of_one_image_after_the_other(model, forget):
    network = copy.deepcopy(model).eval()
    names = ["stem.0.weight"] if "stem.0.weight" in dict(network.named_parameters()) else [
        name for name, _ in network.named_parameters()
    ][:3]  # fmt: skip
    found, now = margin_gradients(network, names, to_inputs(forget.images), forget.labels)
    np.testing.assert_allclose(now.numpy(), margins_of(network, forget), atol=1e-5)
    for row, image, label in zip(found, to_inputs(forget.images), forget.labels, strict=True):
        network.zero_grad()
        margins(network(image[None]), label[None]).sum().backward()
        one = torch.cat([network.get_parameter(name).grad.flatten() for name in names])
        torch.testing.assert_close(row, one, atol=1e-5, rtol=1e-4)


def test_a_step_is_the_damped_least_squares_solution(model, forget):
    """Against the textbook's ridge regression on all weights at once."""
    network, images = copy.deepcopy(model).eval(), to_inputs(forget.images)
    names = [name for name, _ in network.named_parameters()]
    jacobian = margin_gradients(network, names, images, forget.labels)[0].double()
    residual = 1.0 - torch.from_numpy(margins_of(network, forget)).double()
    damping = 0.1 * jacobian.square().sum(dim=1).mean()
    ridge = torch.linalg.solve(jacobian.T @ jacobian + damping * torch.eye(jacobian.shape[1]), jacobian.T @ residual)
    before = torch.cat([p.detach().flatten() for p in network.parameters()])
    match(network, images, forget.labels, torch.ones(len(forget)), damping=0.1)
    change = torch.cat([p.detach().flatten() for p in network.parameters()]) - before
    torch.testing.assert_close(change.double(), ridge, atol=1e-4, rtol=1e-2)


def test_gradients_held_in_parts_give_the_same_step(model, forget, monkeypatch):
    whole, parts = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    arguments = (to_inputs(forget.images), forget.labels, torch.zeros(len(forget)))
    match(whole, *arguments, damping=0.1)
    monkeypatch.setattr(module, "_LARGEST_JACOBIAN", 500 * len(forget))
    match(parts, *arguments, damping=0.1)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_oracles_that_do_not_fit_are_refused(forget):
    for wrong in (np.zeros((3, len(forget) - 1)), np.zeros((0, len(forget))), np.zeros(len(forget))):
        with pytest.raises(MethodError, match="one column for each image"):
            with_oracles(forget, wrong)
    with pytest.raises(MethodError, match="finite"):
        with_oracles(forget, np.full((2, len(forget)), np.nan))


def test_oracles_go_where_the_examples_go(forget, oracles):
    moved = with_oracles(forget, oracles).to(torch.device("cpu"))
    assert isinstance(moved, OracleExamples)
    assert isinstance(moved, Examples)
    assert moved.oracle_margins.shape == oracles.shape
    assert [field.name for field in dataclasses.fields(moved)] == ["images", "labels", "oracle_margins"]
