from torch.nn.functional import cross_entropy

from unlearning.methods.gradient_ascent import GradientAscentSettings, gradient_ascent
from unlearning.models import to_inputs


def test_loss_on_the_forget_set_rises(model, forget, retain, as_bound):
    """Against a run at rate 0, which moves the batch statistics only."""
    still, climbed = (
        gradient_ascent(
            model, forget, retain, settings=as_bound(GradientAscentSettings, learning_rate=rate), seed=1, device="cpu"
        ).eval()
        for rate in (0.0, 0.01)
    )
    before, after = (cross_entropy(m(to_inputs(forget.images)), forget.labels).item() for m in (still, climbed))
    assert after > before


def test_retain_set_is_not_read(model, forget, retain, as_bound, same):
    settings = as_bound(GradientAscentSettings)
    one, other = (
        gradient_ascent(model, forget, kept, settings=settings, seed=1, device="cpu")
        for kept in (retain, retain.subset(range(2)))
    )
    assert same(one, other)


def test_defaults():
    assert 1e-4 <= GradientAscentSettings().learning_rate <= 1e-3
