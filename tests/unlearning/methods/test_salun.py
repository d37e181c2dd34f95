import torch

from unlearning.methods import salun as room
from unlearning.methods.salun import SalUnSettings, saliency, salun
from unlearning.models import to_inputs


def test_unmasked_weights_are_bit_identical_under_decay_and_momentum(model, forget, retain, as_bound):
    """The published mistake: a mask on gradients alone, under which decay and momentum still move weights."""
    settings = as_bound(SalUnSettings, weight_decay=0.1, momentum=0.99, epochs=3.0, batch_size=16)
    result = salun(model, forget, retain, settings=settings, seed=1, device="cpu")
    still = sum(int((p == model.get_parameter(name)).sum()) for name, p in result.named_parameters())
    total = sum(p.numel() for p in model.parameters())
    assert still >= total - round(0.5 * total)
    assert still < total * 0.55


def test_weights_that_move_are_the_most_salient_and_not_the_least(monkeypatch, model, forget, retain, as_bound):
    """The other published mistake."""
    values = {name: torch.rand(p.shape) for name, p in model.named_parameters()}
    monkeypatch.setattr(room, "saliency", lambda *_: values)
    settings = as_bound(SalUnSettings, epochs=1.0, weight_decay=0.1)
    result = salun(model, forget, retain, settings=settings, seed=1, device="cpu")
    moved = {name: p != model.get_parameter(name) for name, p in result.named_parameters()}
    least_moved = min(values[name][moved[name]].min() for name in values if moved[name].any())
    assert least_moved >= torch.cat([v.flatten() for v in values.values()]).median()


def test_every_epoch_draws_labels_anew(monkeypatch, model, forget, retain, as_bound):
    drawn = []
    real = room.cross_entropy
    monkeypatch.setattr(
        room,
        "cross_entropy",
        lambda outputs, labels, **options: drawn.append(labels) or real(outputs, labels, **options),
    )
    settings = as_bound(SalUnSettings, epochs=6.0, batch_size=64)
    salun(model, forget, retain, settings=settings, seed=1, device="cpu")
    epochs = [labels.bincount(minlength=3) - retain.labels.bincount(minlength=3) for labels in drawn[1:]]
    assert all(counts.sum() == len(forget) for counts in epochs)
    assert len({tuple(counts.tolist()) for counts in epochs}) > 1  # drawn once they would be the same six times


def test_saliency_is_the_gradient_of_the_forget_loss(model, forget, feed):
    plain = type(feed)(feed.device, feed.dtype, type(feed.augment)(), feed.generator)
    student = feed.student(model)
    values = saliency(student, forget, SalUnSettings(batch_size=4), plain)
    student.eval()
    student.zero_grad()
    loss = torch.nn.functional.cross_entropy(student(to_inputs(forget.images)), forget.labels, reduction="sum")
    loss.backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(values[name], parameter.grad.abs(), atol=1e-4, rtol=1e-3)


def test_defaults_are_the_authors():
    settings = SalUnSettings()
    assert (settings.salient_share, settings.learning_rate, settings.epochs) == (0.5, 0.013, 10.0)
