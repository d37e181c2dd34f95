"""Penultimate features: what the last linear layer of a network takes in, whatever the network is called.

The layer is found by running the network, not by its name: forward hooks record what every linear layer gives, and the
classifier is the last one whose output is the logits. So it works for networks that torch.fx cannot trace.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unlearning.errors import FeaturesError
from unlearning.models import to_inputs
from unlearning.training import images_at_once


def features_and_logits(model: nn.Module, images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns features `(n, n_features)` and logits `(n, n_classes)` of uint8 images `(n, channels, height, width)`.

    One forward pass, in float32 and eval mode on the model's device; the model is left in the mode it was in. The
    features of two models are of different bases: training from another seed permutes and mixes them.

    Raises:
        FeaturesError: no linear layer gives the logits.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    seen: list[Tensor] = []
    logits: list[Tensor] = []
    try:
        with torch.inference_mode():
            classifier = _classifier(model, to_inputs(images[:1].to(device)))
            hook = classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].flatten(1)))
            try:
                for part in images.split(images_at_once(images)):
                    logits.append(model(to_inputs(part.to(device, non_blocking=True))).float().cpu())
            finally:
                hook.remove()
    finally:
        model.train(was_training)
    return torch.cat([part.float().cpu() for part in seen]).numpy(), torch.cat(logits).numpy()


def _classifier(model: nn.Module, inputs: Tensor) -> nn.Linear:
    """The last linear layer that gives what the model gives for one image `(1, channels, height, width)`."""
    given: list[tuple[nn.Linear, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, output: given.append((module, output)))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        logits = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, output in reversed(given):
        if output.numel() == logits.numel() and torch.equal(output.reshape(logits.shape), logits):
            return layer
    raise FeaturesError(
        f"Expected a network whose logits are what a linear layer gives, but none of the {len(given)} linear layers "
        f"that {type(model).__name__} calls gives them; its features cannot be compared. Choose an architecture that "
        "ends in a linear layer, or do without."
    )
