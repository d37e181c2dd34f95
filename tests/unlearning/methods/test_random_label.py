import copy

import torch

from unlearning.methods import random_label as room
from unlearning.methods.random_label import RandomLabelSettings, random_label, relabel
from unlearning.models import to_inputs


def test_labels_are_uniform_over_all_classes(forget, feed):
    many = type(forget)(forget.images.repeat(300, 1, 1, 1), forget.labels.repeat(300))
    relabelled = relabel(many, 3, feed)
    assert torch.equal(relabelled.images, many.images)
    counts = relabelled.labels.bincount(minlength=3) / len(many)
    assert (counts - 1 / 3).abs().max() < 0.04  # 4.6 standard deviations of a fair draw of 3,000
    agree = (relabelled.labels == many.labels).float().mean()
    assert abs(agree - 1 / 3) < 0.04  # the right one is among them


def test_both_sets_are_trained_together_under_labels_that_each_epoch_draws_anew(monkeypatch, model, forget, retain):
    """As OPTML-Group/Unlearn-Saliency has it; one batch an epoch, examples told by their pixels."""
    met: list[dict[bytes, int]] = []
    seen = []
    real = room.cross_entropy

    def note(outputs, labels):
        met.append({image.numpy().tobytes(): int(label) for image, label in zip(seen[-1], labels, strict=True)})
        return real(outputs, labels)

    monkeypatch.setattr(room, "cross_entropy", note)
    watched = copy.deepcopy(model)
    watched.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    settings = RandomLabelSettings(epochs=6.0, batch_size=64)  # no recipe: images as they are
    random_label(watched, forget, retain, settings=settings, seed=1, device="cpu")
    kept = zip(to_inputs(retain.images), retain.labels, strict=True)
    known = {image.numpy().tobytes(): int(label) for image, label in kept}
    asked = {image.numpy().tobytes() for image in to_inputs(forget.images)}
    assert len(met) == 6
    for epoch in met:
        assert epoch.keys() == known.keys() | asked
        assert all(epoch[image] == label for image, label in known.items())
    assert len({tuple(epoch[image] for image in sorted(asked)) for epoch in met}) == 6


def test_an_epoch_that_ends_early_has_its_share_of_the_steps(forget, retain, feed):
    steps = room.relabelled_batches(forget, retain, 3, RandomLabelSettings(epochs=1.5, batch_size=25), feed)
    assert [len(labels) for _, labels in steps] == [25, 25, 25]


def test_defaults():
    assert (RandomLabelSettings().epochs, RandomLabelSettings().learning_rate) == (10.0, 0.01)
