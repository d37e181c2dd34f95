import math

import pytest
import torch

from unlearning.methods import kookmin as room
from unlearning.methods.kookmin import KookminSettings, agreement_gradients, kookmin, redraw
from unlearning.models import to_inputs
from unlearning.procedures.modules import convolution_weights


def test_redrawn_are_the_smallest_thirty_per_cent_of_every_kernel(model, forget, retain, as_bound):
    """Without repair, exactly round(30 %) entries of each kernel differ, and nothing else does."""
    settings = as_bound(KookminSettings, epochs=0.0, batch_size=16)
    result = kookmin(model, forget, retain, settings=settings, seed=1, device="cpu")
    kernels = convolution_weights(model)
    for name, parameter in result.named_parameters():
        changed = parameter != model.get_parameter(name)
        if name in kernels:
            assert changed.sum() == round(0.3 * parameter.numel())
        else:
            assert not changed.any()


def test_smallest_gradients_are_those_of_least_magnitude(monkeypatch, model, forget, retain, as_bound):
    """Of either sign: the entry with the most negative gradient is kept."""
    kernels = convolution_weights(model)
    gradients = {name: torch.linspace(-1.0, 1.0, k.numel()).view(k.shape) for name, k in kernels.items()}
    monkeypatch.setattr(room, "agreement_gradients", lambda *_, **__: gradients)
    settings = as_bound(KookminSettings, epochs=0.0)
    result = kookmin(model, forget, retain, settings=settings, seed=1, device="cpu")
    for name, gradient in gradients.items():
        kept = result.get_parameter(name) == model.get_parameter(name)
        assert kept.sum() == kept.numel() - round(0.3 * kept.numel())
        assert gradient[kept].abs().min() >= gradient[~kept].abs().max()


@pytest.mark.parametrize("mode", ["training", "eval"])
def test_gradients_are_of_retain_minus_forget(mode, model, forget, retain, feed):
    """A naive twin; the whole retain set is 'a random subset' if the forget set is as large.

    In training mode, as the team has it, each set is one batch that is normalised by itself.
    """
    student = feed.student(model)
    plain = type(feed)(feed.device, feed.dtype, type(feed.augment)(), feed.generator)
    kernels = convolution_weights(student)
    same_size = retain.subset(range(len(forget)))
    got = agreement_gradients(
        student, kernels, forget=forget, retain=same_size, settings=KookminSettings(gradients_in=mode), feed=plain
    )
    student.train(mode == "training")
    student.zero_grad()
    ce = torch.nn.functional.cross_entropy
    loss = ce(student(to_inputs(same_size.images)), same_size.labels, reduction="sum")
    loss = loss - ce(student(to_inputs(forget.images)), forget.labels, reduction="sum")
    loss.backward()
    for name, kernel in kernels.items():
        torch.testing.assert_close(got[name], kernel.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("mode", ["training", "eval"])
def test_gradients_leave_no_trace_in_batch_statistics(mode, *, model, forget, retain, feed, same):
    student, settings = feed.student(model), KookminSettings(gradients_in=mode)
    agreement_gradients(
        student, convolution_weights(student), forget=forget, retain=retain, settings=settings, feed=feed
    )
    assert same(student, model)
    assert student.training
    assert all(parameter.grad is None for parameter in student.parameters())


def test_redrawn_entries_are_he_normal_fan_out():
    kernel = torch.nn.Parameter(torch.full((64, 16, 3, 3), 5.0))
    mask = torch.rand(kernel.shape) < 0.5
    torch.manual_seed(1)
    redraw(kernel, mask)
    assert (kernel[~mask] == 5.0).all()
    assert kernel[mask].std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)
    assert kernel[mask].mean().item() == pytest.approx(0.0, abs=0.003)


def test_kept_kernel_entries_move_a_tenth(model, forget, retain, as_bound):
    """One step without momentum or decay: with factor 0 the kept entries stand still, the redrawn and all else move."""
    options = {"epochs": 1.0, "batch_size": len(retain), "momentum": 0.0, "weight_decay": 0.0, "multipliers": (1.0,)}
    still, slow, none = (
        kookmin(model, forget, retain, settings=as_bound(KookminSettings, **options, **changed), seed=1, device="cpu")
        for changed in ({"kept_gradient": 0.0}, {"kept_gradient": 0.1}, {"learning_rate": 0.0})
    )
    for name in convolution_weights(model):
        original, start = model.get_parameter(name), none.get_parameter(name)
        kept = start == original
        assert torch.equal(still.get_parameter(name)[kept], original[kept])
        assert not torch.equal(slow.get_parameter(name)[kept], original[kept])
        assert torch.equal(still.get_parameter(name)[~kept], slow.get_parameter(name)[~kept])
    assert not torch.equal(still.fc.weight, model.fc.weight)


def test_rate_rises_and_falls_by_the_multipliers(monkeypatch, model, forget, retain, as_bound):
    taken = []
    monkeypatch.setattr(room, "descend", lambda optimiser, loss, rate, **options: taken.append(rate))
    settings = as_bound(KookminSettings, batch_size=16, learning_rate=3.0)
    kookmin(model, forget, retain, settings=settings, seed=1, device="cpu")
    assert taken == pytest.approx([1.0] * 3 + [2.0] * 3 + [3.0] * 3 + [2.0] * 3 + [1.0] * 3)


def test_defaults_are_the_teams():
    settings = KookminSettings()
    assert (settings.epochs, settings.learning_rate, settings.weight_decay) == (5.0, 1e-3, 5e-4)
    assert (settings.redrawn_share, settings.kept_gradient, settings.batch_size) == (0.3, 0.1, 64)
    assert settings.multipliers == (1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3)
    assert settings.gradients_in == "training"
