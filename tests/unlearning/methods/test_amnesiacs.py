import dataclasses

import pytest
import torch
from torch import nn

from unlearning.errors import MethodError
from unlearning.methods import amnesiacs as room
from unlearning.methods.amnesiacs import AmnesiacsSettings, amnesiacs
from unlearning.models import to_inputs

FORMER = {"scale_divergence": True, "soft_temperature": 1.0}
"""Hinton's factor on the divergence, answers not softened."""


def test_first_convolution_and_classifier_are_reset_and_nothing_else(model, retain, as_bound):
    settings = as_bound(AmnesiacsSettings, epochs=0.0, distil_epochs=0.0)
    result = amnesiacs(model, None, retain, settings=settings, seed=1, device="cpu")
    changed = {name for name, p in result.named_parameters() if not torch.equal(p, model.get_parameter(name))}
    assert changed == {"stem.weight", "fc.weight", "fc.bias"}


def test_two_phases_with_their_rates(monkeypatch, model, retain, as_bound):
    taken = []
    monkeypatch.setattr(room, "descend", lambda optimiser, loss, rate, **options: taken.append(rate))
    amnesiacs(model, None, retain, settings=as_bound(AmnesiacsSettings, batch_size=64), seed=1, device="cpu")
    assert taken == pytest.approx([9e-4] * 3 + [1e-3, 0.75e-3, 0.25e-3])


def test_first_phase_reads_no_labels(model, retain, as_bound, same):
    settings = as_bound(AmnesiacsSettings, epochs=0.0, distil_epochs=2.0)
    shuffled = type(retain)(retain.images, retain.labels.roll(1))
    one, other = (amnesiacs(model, None, r, settings=settings, seed=1, device="cpu") for r in (retain, shuffled))
    assert same(one, other)


@pytest.mark.parametrize(("changed", "factor", "soft_t"), [({}, 1.0, 5.0), (FORMER, 25.0, 1.0)])
def test_weights_are_those_of_a_plain_loop(changed, factor, soft_t, *, model, retain):
    """Two steps of each phase on all images at once, as they are, against torch's own SGD and losses written out."""
    options = {"epochs": 2.0, "learning_rate": 0.05, "distil_epochs": 2.0, "distil_rate": 0.1, "weight_decay": 0.1}
    settings = AmnesiacsSettings(**options, **changed)
    result = amnesiacs(model, None, retain, settings=settings, seed=1, device="cpu")
    start = dataclasses.replace(settings, epochs=0.0, distil_epochs=0.0)
    student = amnesiacs(model, None, retain, settings=start, seed=1, device="cpu").train()
    inputs, truth = to_inputs(retain.images), torch.nn.functional.one_hot(retain.labels, 3)
    with torch.no_grad():
        taught = model(inputs)

    def mean_of(p, log_q):
        return -(p * log_q).sum() / len(p)

    def divergence(outputs):
        p, log_q = (taught / 5).softmax(1), (outputs / 5).log_softmax(1)
        return factor * (mean_of(p, log_q) - mean_of(p, p.log()))

    def mixed(outputs):
        soft = mean_of((taught / soft_t).softmax(1), (outputs / soft_t).log_softmax(1))
        return mean_of(truth, outputs.log_softmax(1)) + soft + divergence(outputs)

    for loss, rates in ((divergence, (0.1, 0.1)), (mixed, (0.05, 0.025))):
        flat, kernels = ([p for p in student.parameters() if (p.ndim > 1) == kind] for kind in (False, True))
        groups = [{"params": flat}, {"params": kernels, "weight_decay": 0.1}]
        optimiser = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
        for rate in rates:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad()
            loss(student(inputs)).backward()
            optimiser.step()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(result.get_parameter(name), parameter, atol=2e-5, rtol=1e-4)


def test_network_without_convolution_is_refused(retain):
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    with pytest.raises(MethodError, match="with a convolution"):
        amnesiacs(network, None, retain, settings=AmnesiacsSettings(), seed=1, device="cpu")


def test_defaults_are_the_teams():
    settings = AmnesiacsSettings()
    assert (settings.distil_epochs, settings.distil_rate, settings.temperature) == (3.0, 9e-4, 5.0)
    assert (settings.epochs, settings.learning_rate, settings.schedule) == (3.0, 1e-3, "cosine")
    assert (settings.weight_decay, settings.scale_divergence, settings.soft_temperature) == (5e-4, False, 5.0)
