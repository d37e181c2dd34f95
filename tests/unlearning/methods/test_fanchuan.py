import pytest
import torch

from unlearning.descent import FlatWeights
from unlearning.methods import fanchuan as room
from unlearning.methods.fanchuan import (
    FanchuanSettings,
    contrast,
    divergence_from_uniform,
    fanchuan,
    unlearn_to_uniform,
)
from unlearning.models import to_inputs
from unlearning.procedures.feeding import feeding


def entropy(model, examples) -> float:
    with torch.no_grad():
        p = model(to_inputs(examples.images)).softmax(dim=1)
    return float(-(p * p.log()).sum(dim=1).mean())


def test_first_phase_raises_entropy_on_the_forget_set(model, forget, recipe):
    settings = FanchuanSettings(recipe=recipe, forget_batch_size=4, uniform_rate=0.05)
    with feeding(settings, 1, "cpu") as feed:
        student = feed.student(model)
        unlearn_to_uniform(student, FlatWeights(student), forget, settings=settings, feed=feed)
    assert entropy(student.eval(), forget) > entropy(model, forget) + 0.01


def test_divergence_is_from_uniform_to_the_answer_and_not_the_other_way():
    logits = torch.tensor([[3.0, 0.0, -1.0]])
    p = logits.softmax(dim=1)
    assert divergence_from_uniform(logits).item() == pytest.approx((1 / 3 * (1 / 3 / p).log()).sum().item(), rel=1e-5)
    assert divergence_from_uniform(torch.full((2, 4), 7.0)).item() == pytest.approx(0.0, abs=1e-6)


def test_contrast_is_mean_negative_log_softmax_over_the_retain_batch():
    forgotten, retained = torch.randn(2, 3), torch.randn(5, 3)
    naive = 0.0
    for z in forgotten:
        similarities = torch.tensor([float(z @ other) / 1.15 for other in retained])
        naive += sum(-float(s - similarities.logsumexp(0)) for s in similarities) / 10
    assert contrast(forgotten, retained, 1.15).item() == pytest.approx(naive, rel=1e-4)


def test_no_gradient_reaches_the_retain_batch():
    forgotten, retained = torch.randn(2, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    contrast(forgotten, retained, 1.15).backward()
    assert forgotten.grad is not None
    assert retained.grad is None


def test_rounds_alternate_and_rates_are_the_teams(monkeypatch, model, forget, retain, recipe):
    taken = []

    def note(optimiser, loss, rate, **options):
        taken.append((rate, optimiser.weight_decay))

    monkeypatch.setattr(room, "descend", note)
    settings = FanchuanSettings(recipe=recipe, rounds=3)
    fanchuan(model, forget, retain, settings=settings, seed=1, device="cpu")
    assert taken[0] == (5e-3, 0.0)
    contrasts, repairs = taken[1::2], taken[2::2]
    assert repairs == [(4e-3, 1e-2)] * 3
    assert [decay for _, decay in contrasts] == [0.0] * 3
    assert contrasts[0][0] == 3e-4
    assert contrasts[1][0] == pytest.approx(1e-6 + (3e-4 - 1e-6) * 0.75)  # a third of the way down the cosine


def test_defaults_are_the_teams():
    settings = FanchuanSettings()
    assert (settings.rounds, settings.retain_batch_size, settings.temperature) == (8, 256, 1.15)
    assert (settings.uniform_rate, settings.contrast_rate, settings.contrast_rate_end) == (5e-3, 3e-4, 1e-6)
    assert (settings.retain_rate, settings.retain_weight_decay, settings.momentum) == (4e-3, 1e-2, 0.9)
