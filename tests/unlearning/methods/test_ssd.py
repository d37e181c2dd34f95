import pytest
import torch
from torch.nn.functional import cross_entropy

from unlearning.methods.ssd import SSDSettings, dampen, importance, ssd
from unlearning.models import to_inputs
from unlearning.procedures.feeding import join


def test_importance_is_the_mean_squared_gradient_of_single_examples(model, forget, feed):
    student = feed.student(model)
    got = importance(student, forget, 1, feed)
    naive = {name: torch.zeros_like(p) for name, p in student.named_parameters()}
    for image, label in zip(forget.images, forget.labels, strict=True):
        student.zero_grad()
        cross_entropy(student(to_inputs(image[None])), label[None]).backward()
        for name, parameter in student.named_parameters():
            naive[name] += parameter.grad**2 / len(forget)
    for name, expected in naive.items():
        torch.testing.assert_close(got[name], expected, atol=1e-6, rtol=1e-3)


def test_dampens_where_the_forget_set_matters_more():
    layer = torch.nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    forgotten = {"weight": torch.tensor([[5.0, 40.0, 11.0, 0.0]])}
    overall = {"weight": torch.tensor([[1.0, 1.0, 1.0, 0.0]])}
    dampen(layer, forgotten, overall, SSDSettings(alpha=10.0, dampening=20.0))
    assert layer.weight.tolist()[0] == pytest.approx([1.0, 0.5, 1.0, 1.0])  # 20/40; 20/11 is cut to 1


def test_everything_includes_the_forget_set(model, forget, retain, as_bound):
    """With α = 0 every weight that S uses is dampened by I_D / I_f, I_D over both sets."""
    settings = as_bound(SSDSettings, alpha=0.0, batch_size=1)
    result = ssd(model, forget, retain, settings=settings, seed=1, device="cpu")
    from unlearning.procedures.feeding import feeding

    with feeding(settings, 2, "cpu") as feed:
        forgotten = importance(feed.student(model), forget, 1, feed)
        overall = importance(feed.student(model), join(retain, forget), 1, feed)
    factor = (overall["fc.weight"] / forgotten["fc.weight"]).clamp(max=1.0)
    torch.testing.assert_close(result.fc.weight, model.fc.weight * factor, atol=1e-4, rtol=1e-2)


def test_defaults_are_the_authors():
    assert (SSDSettings().alpha, SSDSettings().dampening) == (10.0, 1.0)
