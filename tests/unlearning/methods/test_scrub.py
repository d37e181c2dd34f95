import copy

import pytest
import torch

from unlearning.methods import scrub as room
from unlearning.methods.scrub import ScrubRSettings, ScrubSettings, error, scrub, scrub_r
from unlearning.models import to_inputs
from unlearning.procedures.feeding import sgd


def test_teacher_stays_and_student_moves(model, forget, retain, as_bound, same):
    """The published mistake: an optimiser that holds the teacher's parameters too, or instead."""
    teacher = copy.deepcopy(model)
    result = scrub(teacher, forget, retain, settings=as_bound(ScrubSettings), seed=1, device="cpu").eval()
    assert same(teacher, model)
    moved = [not torch.equal(p, model.get_parameter(name)) for name, p in result.named_parameters()]
    assert all(moved)


def test_optimiser_holds_the_students_weights_only(monkeypatch, model, forget, retain, as_bound):
    held = []

    def note(network, settings):
        held.append(network)
        return sgd(network, settings)

    monkeypatch.setattr(room, "sgd", note)
    result = scrub(model, forget, retain, settings=as_bound(ScrubSettings), seed=1, device="cpu")
    assert len(held) == 1
    assert held[0] is result
    assert result is not model


def test_climbs_in_the_first_epochs_only(monkeypatch, model, forget, retain, as_bound):
    steps = []
    monkeypatch.setattr(room, "descend", lambda optimiser, loss, rate, **o: steps.append((loss.item(), rate)))
    scrub(model, forget, retain, settings=as_bound(ScrubSettings), seed=1, device="cpu")
    # one batch of each set: climb, keep, three times; then keep, keep
    climbs = [steps[i][0] for i in (0, 2, 4)]
    keeps = [steps[i][0] for i in (1, 3, 5, 6, 7)]
    assert all(loss <= 0 for loss in climbs)
    assert all(loss > 0 for loss in keeps)
    assert [rate for _, rate in steps] == pytest.approx([5e-4] * 6 + [5e-5] * 2)  # a tenth after the third epoch


def test_rate_falls_to_a_tenth_after_each_epoch_of_decay(monkeypatch, model, forget, retain, as_bound):
    taken = []
    monkeypatch.setattr(room, "descend", lambda optimiser, loss, rate, **options: taken.append(rate))
    settings = as_bound(ScrubSettings, epochs=10, max_epochs=0)
    scrub(model, forget, retain, settings=settings, seed=1, device="cpu")
    assert taken == pytest.approx([5e-4] * 3 + [5e-5] * 2 + [5e-6] * 4 + [5e-7])


def test_forget_set_comes_in_batches_of_its_own_size(monkeypatch, model, forget, retain, as_bound):
    sizes = []
    real = room.distil
    monkeypatch.setattr(room, "distil", lambda student, *rest: sizes.append(len(student)) or real(student, *rest))
    settings = as_bound(ScrubSettings, epochs=1, max_epochs=1, forget_batch_size=5, batch_size=20)
    scrub(model, forget, retain, settings=settings, seed=1, device="cpu")
    assert sizes == [5, 5, 20, 20]


@pytest.mark.parametrize("smoothing", [0.0, 0.05])
def test_weights_are_those_of_a_plain_loop(smoothing, model, forget, retain):
    """Five epochs, all images of a set at once and as they are, against torch's own SGD and losses written out."""
    options = {"learning_rate": 0.02, "max_epochs": 2, "weight_decay": 0.1, "decay_epochs": (1.0, 3.0)}
    settings = ScrubSettings(**options, smoothing=smoothing)
    result = scrub(model, forget, retain, settings=settings, seed=1, device="cpu")
    student = copy.deepcopy(model).train()
    flat, kernels = ([p for p in student.parameters() if (p.ndim > 1) == kind] for kind in (False, True))
    optimiser = torch.optim.SGD([{"params": flat}, {"params": kernels, "weight_decay": 0.1}], lr=0.0, momentum=0.9)

    def divergence(outputs, images):
        with torch.no_grad():
            p = (model(images) / 4).softmax(1)
        return 16 * (p * (p.log() - (outputs / 4).log_softmax(1))).sum() / len(p)

    for epoch, rate in enumerate((0.02, 0.002, 0.002, 0.0002, 0.0002)):
        for examples, climbs in ((forget, True), (retain, False)):
            if climbs and epoch >= 2:
                continue
            images = to_inputs(examples.images)
            outputs = student(images)
            hard = -outputs.log_softmax(1)[torch.arange(len(outputs)), examples.labels].mean()
            loss = -divergence(outputs, images) if climbs else hard + 0.5 * divergence(outputs, images)
            for name, parameter in student.named_parameters():
                loss = loss + smoothing * (parameter - model.get_parameter(name).detach()).norm()
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(result.get_parameter(name), parameter, atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize(("gamma", "alpha"), [(1.0, 0.0), (0.0, 1.0), (1.0, 0.5)])
def test_keeping_is_cross_entropy_and_divergence_by_their_weights(
    gamma, alpha, *, monkeypatch, model, retain, forget, as_bound
):
    seen = []
    monkeypatch.setattr(room, "descend", lambda optimiser, loss, rate, **o: seen.append(loss.item()))
    monkeypatch.setattr(room, "distil", lambda student, teacher, temperature: torch.tensor(3.0))
    settings = as_bound(ScrubSettings, epochs=1, max_epochs=0, gamma=gamma, alpha=alpha)
    scrub(model, forget, retain, settings=settings, seed=1, device="cpu")
    monkeypatch.setattr(room, "cross_entropy", lambda outputs, labels: torch.tensor(7.0))
    scrub(model, forget, retain, settings=settings, seed=1, device="cpu")
    assert seen[1] == pytest.approx(7.0 * gamma + 3.0 * alpha)
    assert (seen[0] == seen[1]) == (gamma == 0.0)


def test_rewinds_to_the_epoch_nearest_to_the_unseen_error(monkeypatch, model, forget, retain, as_bound):
    errors = iter([0.0, 0.3, 0.12, 0.5, 0.08])
    students = []

    def measure(student, examples, feed):
        students.append(student)
        return next(errors)

    monkeypatch.setattr(room, "error", measure)
    settings = as_bound(ScrubRSettings, unseen_error=0.13)
    result = scrub_r(model, forget, retain, settings=settings, seed=1, device="cpu")
    assert len(students) == 5
    assert result is students[2]


def test_checkpoints_are_of_different_epochs(model, forget, retain, as_bound, same):
    """Rewinding to a list of references to one student would be no rewinding."""
    options = {"epochs": 2, "max_epochs": 1, "learning_rate": 0.05}
    first, last = (
        scrub_r(
            model,
            forget,
            retain,
            settings=as_bound(ScrubRSettings, unseen_error=0.0, **{**options, "epochs": n}),
            seed=1,
            device="cpu",
        )
        for n in (1, 2)
    )
    assert not same(first, last)


def test_error_is_the_share_of_wrong_answers(model, forget, feed):
    assert error(model, forget, feed) == pytest.approx(0.0, abs=0.21)
    wrong = type(forget)(forget.images, (forget.labels + 1) % 3)
    assert error(model, wrong, feed) >= 0.79


def test_defaults_are_the_authors():
    settings = ScrubSettings()
    assert (settings.gamma, settings.alpha, settings.temperature) == (1.0, 0.5, 4.0)
    assert (settings.epochs, settings.max_epochs, settings.learning_rate) == (5, 3, 5e-4)
    assert (settings.weight_decay, settings.forget_batch_size, settings.smoothing) == (5e-4, 16, 0.0)
    assert (settings.decay_epochs, settings.decay_rate) == ((3, 5, 9), 0.1)
