import torch

from unlearning.methods import random_label as room
from unlearning.methods.random_label import RandomLabelSettings, random_label, relabel


def test_labels_are_uniform_over_all_classes(forget, feed):
    many = type(forget)(forget.images.repeat(300, 1, 1, 1), forget.labels.repeat(300))
    relabelled = relabel(many, 3, feed)
    assert torch.equal(relabelled.images, many.images)
    counts = relabelled.labels.bincount(minlength=3) / len(many)
    assert (counts - 1 / 3).abs().max() < 0.04  # 4.6 standard deviations of a fair draw of 3,000
    agree = (relabelled.labels == many.labels).float().mean()
    assert abs(agree - 1 / 3) < 0.04  # the right one is among them


def test_both_sets_are_trained_together(monkeypatch, model, forget, retain, as_bound):
    met = []
    monkeypatch.setattr(room, "fit", lambda student, examples, feed, settings: met.append(examples))
    random_label(model, forget, retain, settings=as_bound(RandomLabelSettings), seed=1, device="cpu")
    (examples,) = met
    assert len(examples) == len(retain) + len(forget)
    assert torch.equal(examples.labels[: len(retain)], retain.labels)
    assert not torch.equal(examples.labels[len(retain) :], forget.labels)


def test_defaults():
    assert (RandomLabelSettings().epochs, RandomLabelSettings().learning_rate) == (10.0, 0.01)
