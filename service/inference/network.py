"""What OpenVINO computes a model version by: its network, converted from PyTorch, without a weight in it.

A network is made of a manifest alone and has a place for each tensor of the weights file, so it remembers nobody. The
conversion needs torch, and is done in a process of its own (`service.inference.conversion`) by whoever registers a
version; a serving process only reads the result. Versions that were registered without one, by PyTorch's backend or an
older release, are converted in the same way when they are loaded.

A network is a safetensors file of two arrays of bytes: OpenVINO's description of the graph, and its small constants.

Tested in `tests/service/inference/test_openvino_model.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import structlog
from numpy.typing import NDArray

from service.context import Context
from service.errors import EngineError
from service.models import networks
from service.models.manifest import Manifest

log = structlog.get_logger()

PREFIX = "self.model."  # of the tensors' names in a network


def network_for(context: Context, manifest: Manifest) -> bytes | None:
    """The network to score and to serve weights by: the manifest's own, or else a new one; None with PyTorch's backend.

    Raises:
        WeightsError: the manifest's own is missing or was altered.
        StorageError: the shared storage could not be reached.
        EngineError: as `network_of`.
    """
    if context.settings.backend != "openvino":
        return None
    return networks.load_checked(context, manifest) or network_of(manifest)


def network_of(manifest: Manifest) -> bytes:
    """The network of weights with this manifest, converted now unless this process has done it.

    Raises:
        EngineError: it cannot be converted; or the code of a factory is not the one the weights were trained with.
    """
    return _converted(
        manifest.architecture, manifest.architecture_source, manifest.width, manifest.channels, manifest.image_size,
        len(manifest.classes),
    )  # fmt: skip


def joined(graph: bytes, constants: bytes) -> bytes:
    """A network of its two parts."""
    arrays = {"constants": np.frombuffer(constants, np.uint8), "graph": np.frombuffer(graph, np.uint8)}
    return safetensors.numpy.save(arrays)


def parts_of(network: bytes) -> tuple[bytes, NDArray[np.uint8]]:
    """The graph and the constants of a network.

    Raises:
        EngineError: it is none.
    """
    try:
        arrays = safetensors.numpy.load(network)
        return arrays["graph"].tobytes(), arrays["constants"]
    except (safetensors.SafetensorError, KeyError) as error:
        raise EngineError("Expected a converted network, got other bytes.") from error


@lru_cache(maxsize=4)
def _converted(  # noqa: PLR0917
    architecture: str, source: str, width: int, channels: int, image_size: tuple[int, int], n_classes: int
) -> bytes:
    log.info("network.converting", architecture=architecture)
    wanted = json.dumps([architecture, source, width, channels, image_size, n_classes])
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "service.inference.conversion", wanted, folder],
            env={**others, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
            raise EngineError(f"Expected a network that OpenVINO can compute, but {reason}")
        return Path(folder, "network").read_bytes()
