import pytest
import torch
from torch import nn

from unlearning.errors import MethodError
from unlearning.methods.toshi import ToshiSettings, mistakes, toshi, transpose_kernels
from unlearning.models import to_inputs
from unlearning.procedures.modules import convolution_weights


def test_transpose_exchanges_the_spatial_axes_of_every_kernel(model, forget, retain, as_bound):
    settings = as_bound(ToshiSettings, procedure="transpose", epochs=0.0)
    result = toshi(model, forget, retain, settings=settings, seed=1, device="cpu")
    kernels = convolution_weights(model)
    for name, parameter in result.named_parameters():
        original = model.get_parameter(name)
        assert torch.equal(parameter, original.transpose(2, 3) if name in kernels else original)


def test_kernels_that_are_not_square_are_left_alone():
    network = nn.Sequential(nn.Conv2d(1, 2, (1, 3)), nn.Conv2d(2, 2, 3))
    before = network[0].weight.detach().clone()
    transpose_kernels(network)
    assert torch.equal(network[0].weight, before)
    with pytest.raises(MethodError, match="larger than 1×1 to transpose"):
        transpose_kernels(nn.Sequential(nn.Conv2d(1, 2, 1)))


def test_each_run_picks_one_of_the_two(model, forget, retain, as_bound, same):
    either, transposed, pseudo = (
        [
            toshi(
                model,
                forget,
                retain,
                settings=as_bound(ToshiSettings, procedure=procedure, epochs=0.0),
                seed=seed,
                device="cpu",
            )
            for seed in range(8)
        ]
        for procedure in ("either", "transpose", "pseudo_labels")
    )
    picked = [
        "transpose" if same(e, t) else "pseudo_labels" if same(e, p) else "neither"
        for e, t, p in zip(either, transposed, pseudo, strict=True)
    ]
    assert set(picked) == {"transpose", "pseudo_labels"}


def test_taught_are_the_mistakes_of_a_fine_tuned_copy_with_the_wrong_labels(model, forget, retain, feed, same):
    import copy

    before = copy.deepcopy(model)
    settings = ToshiSettings(probe_epochs=0.0)  # the copy is the model itself
    with torch.no_grad():
        answers = model(to_inputs(forget.images)).argmax(dim=1)
    odd = type(forget)(forget.images, (answers + torch.arange(len(forget)) % 2) % 3)  # every other label is wrong
    taught = mistakes(model, odd, retain, settings, feed)
    assert torch.equal(taught.images, forget.images[1::2])
    assert torch.equal(taught.labels, answers[1::2])
    assert same(model, before)


def test_no_mistakes_nothing_taught(model, forget, retain, feed):
    with torch.no_grad():
        answers = model(to_inputs(forget.images)).argmax(dim=1)
    assert (
        len(mistakes(model, type(forget)(forget.images, answers), retain, ToshiSettings(probe_epochs=0.0), feed)) == 0
    )


def test_defaults_are_the_teams():
    settings = ToshiSettings()
    assert (settings.epochs, settings.learning_rate, settings.weight_decay) == (3.0, 1e-3, 5e-4)
    assert (settings.schedule, settings.procedure) == ("cosine", "either")
