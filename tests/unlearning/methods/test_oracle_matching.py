import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from unlearning.errors import MethodError
from unlearning.methods import oracle_matching as module
from unlearning.methods import unlearn
from unlearning.methods.oracle_matching import OracleMatchingSettings, oracle_matching
from unlearning.methods.remix import remix
from unlearning.models import to_inputs
from unlearning.procedures.finishing import finish, margins
from unlearning.procedures.modules import layout
from unlearning.procedures.oracles import OracleExamples, with_oracles
from unlearning.training import Examples

LOOSE = {"epochs": 1.0, "hold": 1_000.0, "decay": 0.0, "n_iterations": 500}


@pytest.fixture(scope="module")
def oracles(forget):
    """Margins of five oracles, each set apart from the others."""
    return np.linspace(-2.0, 2.0, 5)[:, None] + np.linspace(-0.5, 0.5, len(forget))[None]


@pytest.fixture(scope="module")
def run(model, forget, retain, oracles, as_bound):
    def run(seed: int, **options) -> nn.Module:
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


@pytest.fixture
def run_without_fit(run, monkeypatch):
    def run_without_fit(seed: int, **options) -> nn.Module:
        with monkeypatch.context() as patched:
            patched.setattr(module, "fit_last_layer", lambda *arguments, **options: None)
            return run(seed, **options)

    return run_without_fit


def test_before_the_fit_it_is_remix_and_settled(run_without_fit, model, retain, as_bound, same):
    loosening = as_bound(OracleMatchingSettings, **LOOSE).loosening
    assert len(retain) < module._SETTLED_ON  # so that it settles on all, as remix does
    expected = remix(model, None, retain, settings=loosening, seed=7, device="cpu")
    finish(expected, model, retain, settings=loosening, seed=7, device=torch.device("cpu"))
    assert same(run_without_fit(7), expected)


def test_the_fit_moves_the_last_layer_alone_and_brings_accuracy_back(run, run_without_fit, retain):
    def accuracy(network) -> float:
        with torch.no_grad():
            return float((network(to_inputs(retain.images)).argmax(1) == retain.labels).float().mean())

    options = {"mixed_share": 0.9, "n_iterations": 60, "hold": 0.1}
    loose, fitted = run_without_fit(7, **options), run(7, **options)
    moved = {
        name
        for (name, before), after in zip(loose.state_dict().items(), fitted.state_dict().values(), strict=True)
        if not torch.equal(before, after)
    }
    assert moved == {f"{layout(fitted).classifier}.{kind}" for kind in ("weight", "bias")}
    assert accuracy(fitted) > accuracy(loose)


def test_a_run_that_diverges_says_so(model, forget, retain, oracles, as_bound):
    settings, broken = as_bound(OracleMatchingSettings), copy.deepcopy(model)
    broken.get_parameter("stem.weight").data.fill_(3e38)
    with pytest.raises(MethodError, match="oracle_matching diverged"):
        unlearn(
            "oracle_matching", broken, with_oracles(forget, oracles), retain,
            recipe=settings.recipe, seed=1, device="cpu", settings=settings,
        )  # fmt: skip


def test_a_network_without_a_linear_end_is_told_so(forget, retain, oracles, as_bound):
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(MethodError, match="Expected a linear layer with a bias at the end"):
        oracle_matching(
            network, with_oracles(forget, oracles), retain,
            settings=as_bound(OracleMatchingSettings, **LOOSE), seed=1, device="cpu",
        )  # fmt: skip


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
