import pytest
import torch
from torch import nn

from unlearning.errors import MethodError
from unlearning.methods import amnesiacs as room
from unlearning.methods.amnesiacs import AmnesiacsSettings, amnesiacs


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


def test_second_phase_is_hard_soft_and_divergence_together(monkeypatch, model, retain, as_bound):
    losses, outputs = [], []
    monkeypatch.setattr(room, "descend", lambda optimiser, loss, rate, **options: losses.append(loss.item()))
    real = room.distil
    monkeypatch.setattr(room, "distil", lambda *logits: outputs.append(logits) or real(*logits))
    settings = as_bound(AmnesiacsSettings, epochs=1.0, distil_epochs=0.0)
    amnesiacs(model, None, retain, settings=settings, seed=1, device="cpu")
    student, teacher, temperature = outputs[0]
    soft = -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean()
    apart = ((teacher / 5).softmax(1) * ((teacher / 5).log_softmax(1) - (student / 5).log_softmax(1))).sum(1).mean()
    hard = losses[0] - soft.item() - 25 * apart.item()
    assert temperature == 5.0
    # What is left must be the cross-entropy of 40 labels: no less than with the easiest class for every image.
    assert hard > -student.log_softmax(1).max(1).values.mean().item() - 1e-5
    assert hard < -student.log_softmax(1).min(1).values.mean().item() + 1e-5


def test_network_without_convolution_is_refused(retain):
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    with pytest.raises(MethodError, match="with a convolution"):
        amnesiacs(network, None, retain, settings=AmnesiacsSettings(), seed=1, device="cpu")


def test_defaults_are_the_teams():
    settings = AmnesiacsSettings()
    assert (settings.distil_epochs, settings.distil_rate, settings.temperature) == (3.0, 9e-4, 5.0)
    assert (settings.epochs, settings.learning_rate, settings.schedule) == (3.0, 1e-3, "cosine")
