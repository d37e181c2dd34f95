import pytest
import torch

from unlearning.methods import forget as room
from unlearning.methods.forget import ForgetSettings, forget_cycles, pick_layers
from unlearning.procedures.modules import layout


def test_each_cycle_redraws_then_repairs_under_its_own_cosine(monkeypatch, model, retain, as_bound):
    story = []
    monkeypatch.setattr(room, "pick_layers", lambda student, n, feed: story.append(n) or [])
    monkeypatch.setattr(room, "descend", lambda optimiser, loss, rate, **options: story.append(rate))
    forget_cycles(model, None, retain, settings=as_bound(ForgetSettings), seed=1, device="cpu")
    assert story == pytest.approx([6, 1e-3, 6, 1e-3, 0.5e-3, 6, 1e-3, 0.5e-3])


def test_classifier_and_shortcuts_are_never_drawn(model, feed):
    parts = layout(model)
    picked = pick_layers(model, 500, feed)
    assert len(picked) == 500  # with replacement
    assert set(picked) == set(parts.layers) - {parts.classifier, *parts.shortcuts}


def test_layers_are_drawn_anew(model, retain, as_bound):
    settings = as_bound(ForgetSettings, cycle_epochs=(0.0,), n_layers=2)
    result = forget_cycles(model, None, retain, settings=settings, seed=1, device="cpu")
    changed = {name for name, p in result.named_parameters() if not torch.equal(p, model.get_parameter(name))}
    assert 1 <= len(changed) <= 2


def test_matches_the_original_and_reads_no_labels(model, retain, as_bound, same):
    settings = as_bound(ForgetSettings, cycle_epochs=(6.0,), n_layers=1, learning_rate=0.02, batch_size=16)
    shuffled = type(retain)(retain.images, retain.labels.roll(1))
    one, other = (forget_cycles(model, None, r, settings=settings, seed=1, device="cpu") for r in (retain, shuffled))
    assert same(one, other)


def test_defaults_are_the_teams():
    settings = ForgetSettings()
    assert settings.cycle_epochs == (1.0, 2.0, 2.0)
    assert (settings.n_layers, settings.input_noise, settings.learning_rate) == (6, 0.01, 1e-3)
