"""From checked weights to a network."""

from __future__ import annotations

import safetensors
import safetensors.torch
from torch import nn

from service.errors import WeightsError
from service.models.registry import CheckedWeights
from unlearning.errors import UnlearningError
from unlearning.factories import is_factory, require_source
from unlearning.models import build_empty


def build_model(weights: CheckedWeights) -> nn.Module:
    """Model of a version on the CPU, float32, in eval mode, without gradients.

    It takes over the file's tensors, so where it can no random weights are drawn for nothing.

    Raises:
        WeightsError: the bytes are no safetensors file, or of another architecture than the manifest says; or the code
            of a factory is not the one the weights were trained with, so that they might mean something else.
    """
    manifest = weights.manifest
    try:
        if is_factory(manifest.architecture):
            require_source(manifest.architecture, manifest.architecture_source)
        model = build_empty(
            manifest.architecture, len(manifest.classes), channels=manifest.channels, width=manifest.width
        )
        model.load_state_dict(safetensors.torch.load(bytes(weights.content)), assign=True)
    except (safetensors.SafetensorError, UnlearningError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"Expected weights of {manifest.architecture} in {weights.digest}, got others: {reason}"
        ) from error
    return model.requires_grad_(False).eval()
