"""Which entries of one tensor, or of many together, are the smallest or largest: exact counts in linear time."""

import torch
from torch import Tensor


def smallest(values: Tensor, share: float) -> Tensor:
    """Returns a mask in the shape of `values` of its round(share · size) smallest entries; of equals the first ones."""
    flat = values.detach().flatten()
    n_chosen = round(share * flat.numel())
    if n_chosen == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = flat.kthvalue(n_chosen).values  # selection, not sorting: networks have millions of weights
    mask = flat < threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    mask[ties[: n_chosen - int(mask.sum())]] = True
    return mask.view(values.shape)


def smallest_of_all(values: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Returns masks that hold the round(share · total) smallest entries over all tensors together, by their names."""
    chosen = smallest(torch.cat([tensor.detach().flatten() for tensor in values.values()]), share)
    parts = chosen.split([tensor.numel() for tensor in values.values()])
    return {name: part.view(values[name].shape) for name, part in zip(values, parts, strict=True)}


def largest_of_all(values: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Returns masks that hold the round(share · total) largest entries over all tensors together, by their names."""
    return smallest_of_all({name: -tensor.detach() for name, tensor in values.items()}, share)
