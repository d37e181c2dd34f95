import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from unlearning.errors import MethodError
from unlearning.models import build
from unlearning.procedures.feeding import (
    balance,
    cosine,
    count_classes,
    descend,
    distil,
    feeding,
    fit,
    join,
    n_steps,
    needed,
    one_cycle,
    rates,
    sgd,
)
from unlearning.procedures.settings import DescentSettings, Settings
from unlearning.training import Augment, Examples


def test_arithmetic_and_variation_are_the_recipes(recipe):
    with feeding(Settings(recipe=recipe), 1, "cpu") as feed:
        assert feed.augment == Augment(shift=1, flip=True)
        assert feed.dtype == torch.float32
    with feeding(Settings(), 1, "cpu") as feed:
        assert feed.augment == Augment()


def test_noise_is_independent_of_layers_initialised_from_the_same_seed(recipe):
    """Generators of equal seeds draw correlated numbers; 0.05 is 4.8 standard deviations of independent ones."""
    torch.manual_seed(5)
    trained_earlier = torch.nn.Linear(100, 96)
    with feeding(Settings(recipe=recipe), 5, "cpu") as feed:
        noise = feed.normal_like(trained_earlier.weight, 1.0)
        drawn_now = torch.nn.Linear(100, 96)
    for layer in (trained_earlier, drawn_now):
        pair = torch.stack([layer.weight.detach().flatten(), noise.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.05


def test_an_epoch_meets_every_example_once(feed, retain):
    labels = torch.arange(len(retain))
    seen = torch.cat([got for _, got in feed.batches(Examples(retain.images, labels), 16)])
    assert torch.equal(seen.sort().values, labels)


@pytest.mark.parametrize(("epochs", "steps"), [(0.0, 0), (0.01, 1), (1.0, 3), (1.5, 4), (3.2, 10), (4.0, 12)])
def test_parts_of_epochs(feed, retain, epochs, steps):
    assert n_steps(len(retain), 16, epochs) == steps
    assert len(list(feed.batches(retain, 16, epochs))) == steps


def test_endless_goes_past_the_end(feed, forget):
    batches = feed.endless(forget, 8)
    assert sum(len(next(batches)[1]) for _ in range(6)) == 3 * len(forget)


def test_cosine_falls_from_highest_towards_lowest():
    falling = list(cosine(1.0, 4, lowest=0.2))
    assert falling == pytest.approx([0.2 + 0.4 * (1 + math.cos(math.pi * t / 4)) for t in range(4)])
    assert list(cosine(1.0, 0)) == []


def test_one_cycle_rises_over_a_fifth_and_falls():
    rising_falling = list(one_cycle(1.0, 10))
    assert rising_falling[:2] == [0.5, 1.0]
    assert rising_falling[1:] == sorted(rising_falling[1:], reverse=True)
    assert rising_falling[-1] > 0
    assert [len(list(one_cycle(1.0, steps))) for steps in range(8)] == list(range(8))


def test_rates_follow_the_schedule():
    assert list(rates(DescentSettings(epochs=2.0, learning_rate=0.5, batch_size=16), 40)) == [0.5] * 6
    falling = list(rates(DescentSettings(epochs=2.0, learning_rate=0.5, batch_size=16, schedule="cosine"), 40))
    assert falling[0] == 0.5
    assert falling == sorted(falling, reverse=True)
    assert len(falling) == 6


def test_masks_hold_exactly_their_share(feed):
    assert feed.mask_like(torch.zeros(7, 11), 0.3).sum() == round(0.3 * 77)
    assert feed.mask_like(torch.zeros(3), 0.0).sum() == 0
    assert feed.mask_like(torch.zeros(3), 1.0).all()


def test_student_is_a_free_copy(feed, model, same):
    frozen = model.requires_grad_(False)
    try:
        student = feed.student(frozen)
        assert student.training
        assert all(parameter.requires_grad for parameter in student.parameters())
        assert same(student, model)
        with torch.no_grad():
            next(student.parameters()).add_(1.0)
        assert not same(student, model)
        assert not model.training
    finally:
        model.requires_grad_(True)


def test_teaching_has_no_gradient(feed, model):
    inputs = torch.zeros(2, 1, 16, 16)
    assert not feed.teach(model, inputs).requires_grad
    assert feed.outputs(model, inputs).requires_grad


def test_descend_uses_the_rate_and_the_changed_gradients():
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    optimiser = sgd(layer, DescentSettings(momentum=0.0, learning_rate=9.0))

    def keep_second():
        layer.weight.grad[0, 1] = 0.0

    descend(optimiser, layer.weight.sum(), 0.25, on_gradients=keep_second)
    assert layer.weight.tolist() == [[0.75, 1.0]]


def test_momentum_is_torchs(feed, model, retain):
    """Against torch.optim.SGD with the same momentum, and decay on kernels and matrices only."""
    mine, theirs = feed.student(model), feed.student(model)
    settings = DescentSettings(momentum=0.9, weight_decay=0.01)
    optimiser = sgd(mine, settings)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in theirs.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    reference = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    for inputs, labels in feed.batches(retain, 16):
        descend(optimiser, cross_entropy(mine(inputs), labels), 0.05)
        reference.zero_grad()
        cross_entropy(theirs(inputs), labels).backward()
        reference.step()
    for got, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_fit_lowers_the_loss(feed, retain):
    torch.manual_seed(3)
    student = build("small_resnet", 3, channels=1, width=4).train()
    inputs, labels = next(feed.batches(retain, 40))
    before = cross_entropy(student(inputs), labels).item()
    fit(student, retain, feed, DescentSettings(epochs=8.0, learning_rate=0.05, batch_size=16))
    assert cross_entropy(student(inputs), labels).item() < 0.8 * before


def test_distil_is_the_divergence_from_the_teacher():
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    p, q = (teacher / 4).softmax(1), (student / 4).softmax(1)
    assert distil(student, teacher, 4.0).item() == pytest.approx(16 * (p * (p / q).log()).sum().item(), rel=1e-5)
    assert distil(teacher, teacher, 4.0).item() == pytest.approx(0.0, abs=1e-6)


def test_balance_and_classes(model, retain):
    assert count_classes(model, retain) == 3
    assert balance(model, retain, 0.0) is None
    assert (balance(model, retain, 1.0) * retain.labels.bincount()).std() == pytest.approx(0.0, abs=1e-4)


def test_join_and_needed(retain, forget):
    both = join(retain, forget)
    assert len(both) == len(retain) + len(forget)
    assert torch.equal(both.labels[-len(forget) :], forget.labels)
    assert needed(forget) is forget
    with pytest.raises(MethodError, match="reads the forget set"):
        needed(None)
