import torch

from unlearning.methods.finetune import FinetuneSettings, finetune


def test_no_rate_changes_no_weight(model, retain, as_bound):
    settings = as_bound(FinetuneSettings, learning_rate=0.0, batch_size=16)
    result = finetune(model, None, retain, settings=settings, seed=1, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(result.parameters(), model.parameters(), strict=True))


def test_is_plain_descent_on_the_retain_set(model, retain):
    """A naive twin: one batch, no variation, one step of SGD."""
    settings = FinetuneSettings(learning_rate=0.1, batch_size=len(retain), momentum=0.0)
    result = finetune(model, None, retain, settings=settings, seed=1, device="cpu")
    import copy

    from unlearning.models import to_inputs

    twin = copy.deepcopy(model).train()
    twin.zero_grad()
    torch.nn.functional.cross_entropy(twin(to_inputs(retain.images)), retain.labels).backward()
    for got, parameter in zip(result.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, parameter - 0.1 * parameter.grad, atol=1e-5, rtol=1e-4)


def test_defaults_are_the_official_codes():
    assert (FinetuneSettings().epochs, FinetuneSettings().learning_rate) == (1.0, 1e-3)
