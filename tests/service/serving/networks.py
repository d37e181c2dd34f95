"""Networks of each kind, with statistics of their own in their norms."""

from __future__ import annotations

import torch
from torch import nn

from unlearning.models import build, to_inputs

SIZES = {"eyes_resnet": (112, 92)}


def images_for(architecture: str, n: int = 5) -> torch.Tensor:
    size = SIZES.get(architecture, (64, 64))
    return torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def trained(architecture: str) -> nn.Module:
    """A model whose norms have statistics of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(architecture, 4, channels=3, width=4).train()
        with torch.no_grad():
            for _ in range(3):
                model(to_inputs(images_for(architecture, 8)))
    return model.requires_grad_(False).eval()
