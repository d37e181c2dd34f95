import pytest
import torch

from unlearning.errors import MethodError
from unlearning.methods.cf_k import LastBlocksSettings, cf_k, eu_k, last_modules


def changed(result, model) -> set[str]:
    got, before = result.state_dict(), model.state_dict()
    return {name for name in got if not torch.equal(got[name], before[name])}


@pytest.mark.parametrize("method", [cf_k, eu_k])
@pytest.mark.parametrize(
    ("k", "parts"), [(0, ("fc.",)), (1, ("fc.", "stages.2.")), (2, ("fc.", "stages.2.", "stages.1."))]
)
def test_front_is_frozen_to_the_last_bit_of_its_statistics(method, k, parts, *, model, retain, as_bound):
    settings = as_bound(LastBlocksSettings, epochs=1.0, weight_decay=0.01, k=k)
    result = method(model, None, retain, settings=settings, seed=1, device="cpu")
    names = changed(result, model)
    assert names == {name for name in model.state_dict() if name.startswith(parts)}


def test_eu_draws_the_last_blocks_anew_and_cf_does_not(model, retain, as_bound):
    settings = as_bound(LastBlocksSettings, epochs=0.0)
    kept, anew = (method(model, None, retain, settings=settings, seed=1, device="cpu") for method in (cf_k, eu_k))
    assert changed(kept, model) == set()
    assert {"fc.weight", "stages.2.conv1.weight", "stages.2.norm2.running_mean"} <= changed(anew, model)
    assert all(name.startswith(("fc.", "stages.2.")) for name in changed(anew, model))


def test_more_blocks_than_there_are_is_refused(model):
    assert len(last_modules(model, 4)) == len(set(last_modules(model, 4)))
    with pytest.raises(MethodError, match=r"Expected k=5 in \[0, 4\], the number of blocks of SmallResNet"):
        last_modules(model, 5)


def test_defaults():
    settings = LastBlocksSettings()
    assert (settings.k, settings.learning_rate, settings.epochs) == (1, 0.01, 10.0)
