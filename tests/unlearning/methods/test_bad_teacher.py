import copy

import torch

from unlearning.methods import bad_teacher as room
from unlearning.methods.bad_teacher import BadTeacherSettings, bad_teacher
from unlearning.models import to_inputs
from unlearning.procedures.feeding import distil


def test_forget_examples_are_taught_by_the_bad_teacher_and_the_rest_by_the_good(
    monkeypatch, model, forget, retain, as_bound
):
    def answer_seven(network):
        for parameter in network.parameters():
            torch.nn.init.zeros_(parameter)
        torch.nn.init.constant_(network.fc.bias, 7.0)

    lessons = []

    def note(student, taught, temperature):
        lessons.append(taught)
        return distil(student, taught, temperature)

    monkeypatch.setattr(room, "reset_all", answer_seven)
    monkeypatch.setattr(room, "distil", note)
    settings = as_bound(BadTeacherSettings, retain_share=1.0, batch_size=16)
    bad_teacher(model, forget, retain, settings=settings, seed=1, device="cpu")
    taught = torch.cat(lessons)
    assert len(taught) == len(retain) + len(forget)
    assert (taught == 7.0).all(dim=1).sum() == len(forget)


def test_bad_teacher_answers_in_eval_mode(monkeypatch, model, forget, retain):
    """As the authors' does: one image gets one lesson, whatever else is in its batch."""
    teachers, lessons = [], []
    real = room.reset_all
    monkeypatch.setattr(room, "reset_all", lambda network: real(network) or teachers.append(network))
    monkeypatch.setattr(room, "distil", lambda student, taught, temperature: lessons.append(taught) or student.sum())
    settings = BadTeacherSettings(retain_share=1.0)
    bad_teacher(model, forget, retain, settings=settings, seed=1, device="cpu")
    with torch.no_grad():
        expected = teachers[0].eval()(to_inputs(forget.images))
    apart = (torch.cat(lessons)[:, None] - expected).abs().amax(dim=2)  # (lessons, forget images)
    assert apart.amin(dim=0).max() < 1e-5


def test_teachers_stay_and_no_labels_are_read(model, forget, retain, as_bound, same):
    given = copy.deepcopy(model)
    one, other = (
        bad_teacher(
            given,
            type(forget)(forget.images, forget.labels.roll(shift)),
            type(retain)(retain.images, retain.labels.roll(shift)),
            settings=as_bound(BadTeacherSettings),
            seed=1,
            device="cpu",
        )
        for shift in (0, 1)
    )
    assert same(given, model)
    assert same(one, other)


def test_defaults_are_the_authors():
    settings = BadTeacherSettings()
    assert (settings.temperature, settings.epochs, settings.learning_rate) == (1.0, 1.0, 1e-4)
    assert settings.retain_share == 0.3
