import torch

from unlearning.methods.random_mask import RandomMaskSettings, random_mask
from unlearning.procedures.modules import norm_parameters


def test_half_of_every_parameter_is_zeroed_and_norms_are_spared(model, retain, as_bound):
    settings = as_bound(RandomMaskSettings, epochs=0.0)
    result = random_mask(model, None, retain, settings=settings, seed=1, device="cpu")
    norms = norm_parameters(model)
    for name, parameter in result.named_parameters():
        original = model.get_parameter(name)
        zeroed = parameter != original
        if name in norms:
            assert not zeroed.any()
        else:
            assert (parameter[zeroed] == 0).all()
            assert (parameter == 0).sum() >= round(0.5 * parameter.numel())
            assert zeroed.sum() <= round(0.5 * parameter.numel())


def test_masked_weights_may_grow_again(model, retain, as_bound):
    start, end = (
        random_mask(model, None, retain, settings=as_bound(RandomMaskSettings, epochs=n), seed=1, device="cpu")
        for n in (0.0, 2.0)
    )
    zeroed = start.stem.weight == 0
    assert (end.stem.weight[zeroed] != 0).any()


def test_repair_is_adam(model, retain, as_bound):
    """Adam's first step has the size of its rate, whatever the gradient."""
    options = {"masked_share": 0.0, "weight_decay": 0.0, "batch_size": len(retain), "learning_rate": 1e-3}
    settings = as_bound(RandomMaskSettings, epochs=1.0, **options)
    result = random_mask(model, None, retain, settings=settings, seed=1, device="cpu")
    steps = (result.fc.weight - model.fc.weight).abs()
    torch.testing.assert_close(steps, torch.full_like(steps, 1e-3), atol=2e-5, rtol=0)


def test_defaults_are_the_entrys():
    settings = RandomMaskSettings()
    assert (settings.masked_share, settings.epochs, settings.learning_rate) == (0.5, 5.0, 1e-4)
    assert (settings.weight_decay, settings.schedule) == (1e-4, "cosine")
