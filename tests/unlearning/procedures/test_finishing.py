import copy
import dataclasses

import pytest
import torch

from unlearning.methods import METHODS, unlearn
from unlearning.models import to_inputs
from unlearning.procedures.finishing import finish, margins, match_confidence, median_margin, sample, settle
from unlearning.procedures.settings import ApproximateSettings
from unlearning.training import Augment


@pytest.fixture
def plain(feed):
    return dataclasses.replace(feed, augment=Augment())


def test_settled_statistics_are_those_of_the_retain_set(model, retain, plain):
    student = copy.deepcopy(model)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.fill_(50.0)
            module.running_var.fill_(1e3)
    settle(student, retain, plain)
    with torch.no_grad():
        seen = student.stem(to_inputs(retain.images))
    torch.testing.assert_close(student.norm.running_mean, seen.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(student.norm.running_var, seen.var(dim=(0, 2, 3)), atol=1e-3, rtol=1e-2)
    assert student.norm.momentum == model.norm.momentum


def test_settling_changes_no_weight_and_needs_no_norms(model, retain, plain, same):
    student = copy.deepcopy(model)
    settle(student, retain, plain)
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), model.parameters(), strict=True))
    normless = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3))
    before = copy.deepcopy(normless)
    settle(normless, retain, plain)
    assert same(normless, before)


@pytest.mark.parametrize(("power", "expected"), [(1.0, 1.0), (0.5, 0.5**0.5), (0.0, 0.5)])
def test_confidence_moves_the_median_margin_towards_the_originals(power, expected, retain, plain):
    """With two classes margins are linear in the classifier, so the ratio is known."""
    torch.manual_seed(1)
    two = type(retain)(retain.images, (retain.labels > 0).long())
    original = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 2))
    with torch.no_grad():  # brightness tells the class
        original[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 256) / 100)
        original[1].bias.zero_()
    student = copy.deepcopy(original)
    with torch.no_grad():
        student[1].weight.mul_(0.5)
    assert median_margin(original, two, plain) > 0
    match_confidence(student, original, two, power=power, feed=plain)
    ratio = median_margin(student, two, plain) / median_margin(original, two, plain)
    assert ratio == pytest.approx(expected, rel=1e-4)


def test_confidence_of_a_failed_repair_is_left_alone(model, retain, plain, same):
    wrong = type(retain)(retain.images, (retain.labels + 1) % 3)
    student = copy.deepcopy(model)
    match_confidence(student, model, wrong, power=1.0, feed=plain)
    assert same(student, model)


def test_sample_has_no_example_twice(retain, feed):
    indexed = type(retain)(retain.images, torch.arange(len(retain)))
    drawn = sample(indexed, 7, feed).labels
    assert len(set(drawn.tolist())) == 7
    assert sample(indexed, 40, feed) is indexed


def test_margins_are_log_odds():
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    p = logits.softmax(dim=1)
    labels = torch.tensor([2, 0])
    chosen = p[torch.arange(2), labels]
    torch.testing.assert_close(margins(logits, labels), (chosen / (1 - chosen)).log())


def test_nothing_asked_nothing_done(model, retain, same):
    student = copy.deepcopy(model)
    finish(student, model, retain, settings=ApproximateSettings(), seed=1, device=torch.device("cpu"))
    assert same(student, model)


def test_unlearn_finishes_and_counts_it(model, retain, recipe):
    plain, finished = (
        unlearn(
            "finetune",
            model,
            None,
            retain,
            recipe=recipe,
            seed=1,
            device="cpu",
            settings=METHODS["finetune"].settings(settle=asked, confidence=float(asked)),
        )
        for asked in (False, True)
    )
    assert finished.cost.n_forward == plain.cost.n_forward + 3 * len(retain)
    assert not torch.equal(finished.model.norm.running_mean, plain.model.norm.running_mean)
    assert not torch.equal(finished.model.fc.weight, plain.model.fc.weight)
    assert torch.equal(finished.model.stem.weight, plain.model.stem.weight)
