import pytest
import torch

from unlearning.methods import sun as room
from unlearning.methods.sun import SunSettings, pick, shake, sun
from unlearning.procedures.modules import norm_parameters


def test_classifier_is_reset(model, retain, as_bound):
    still = as_bound(SunSettings, first_rates=(0.0,), noisy_rates=(0.0,), last_rates=(0.0,), noise=0.0)
    result = sun(model, None, retain, settings=still, seed=1, device="cpu")
    changed = {name for name, p in result.named_parameters() if not torch.equal(p, model.get_parameter(name))}
    assert changed == {"fc.weight", "fc.bias"}


def test_noisy_epochs_train_the_picked_tensors_and_norms_only(monkeypatch, model, retain, as_bound):
    phases = []

    def note(student, parameters, rates, **options):
        phases.append((set(parameters), rates))

    monkeypatch.setattr(room, "_train", note)
    sun(model, None, retain, settings=as_bound(SunSettings), seed=1, device="cpu")
    everything, norms = {name for name, _ in model.named_parameters()}, norm_parameters(model)
    assert phases[0] == (everything, (1e-3,))
    for trained, rates in phases[1:5]:
        assert norms < trained
        assert len(trained - norms) == 9
        assert rates == (2e-4,)
    assert phases[5] == (everything, (2e-4, 2e-4, 2e-4, 1e-3))
    assert len({frozenset(trained) for trained, _ in phases[1:5]}) > 1


def test_what_is_not_trained_stays(model, retain, feed):
    student = feed.student(model)
    trained = {"stem.weight": student.stem.weight}
    room._train(student, trained, (0.1,), retain=retain, settings=SunSettings(batch_size=16), feed=feed)
    changed = {name for name, p in student.named_parameters() if not torch.equal(p, model.get_parameter(name))}
    assert changed == {"stem.weight"}


def test_picks_are_different_and_belong_to_no_norm(model, feed):
    picked = pick(model, 9, feed)
    assert len(set(picked)) == 9
    assert not norm_parameters(model) & set(picked)
    assert len(pick(model, 1000, feed)) == len(dict(model.named_parameters())) - len(norm_parameters(model))


def test_noise_on_seventy_per_cent(feed):
    parameter = torch.nn.Parameter(torch.zeros(100, 10))
    shake({"p": parameter}, SunSettings(), feed)
    assert (parameter != 0).sum() == 700
    assert parameter[parameter != 0].std().item() == pytest.approx(0.04, rel=0.15)


def test_defaults_are_the_teams():
    settings = SunSettings()
    assert (settings.n_tensors, settings.noise, settings.noisy_share) == (9, 0.04, 0.7)
    assert len(settings.first_rates + settings.noisy_rates + settings.last_rates) == 9
