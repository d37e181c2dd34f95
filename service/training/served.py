"""A candidate scored as it will be served: by the serving engine, in its arithmetic.

References are scored in float32. What callers will get of a candidate comes from the engine instead: folded norms,
bfloat16 where the hardware multiplies it, OpenVINO where that is set. So its margins come from there too, and how far
they are from float32 is said with them.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import audit
from service.errors import WeightsError
from service.inference.engine import Backend, Engine
from service.models import networks
from service.models.manifest import Manifest
from service.models.registry import CheckedWeights
from service.settings import Settings
from service.training.jobs import CHUNK, Outcome, in_children, run_trial, run_trials
from service.training.spec import TrialSpec, intact
from unlearning.devices import bound_memory, resolve_device
from unlearning.faces.views import VIEWS


@dataclass(frozen=True)
class Served:
    """Margins of a candidate by the serving engine.

    Attributes:
        views: of the spec's scored rows in every view, float32 `(n_views, n_examples)`.
        backend, dtype: of the engine.
        network: SHA-256 of the converted network that OpenVINO computed by; empty with PyTorch.
    """

    views: NDArray[np.float32]
    backend: str
    dtype: str
    network: str = ""

    def to_dict(self, in_float32: NDArray[np.float32]) -> dict[str, Any]:
        """Plain values.

        Args:
            in_float32: the same margins as computed for references.
        """
        difference = float(np.abs(self.views.astype(np.float64) - in_float32).max())
        values = {**asdict(self), "views": self.views.tolist(), "largest_difference": difference}
        return {name: value for name, value in values.items() if name != "network" or value}


def make_and_score(  # noqa: PLR0917
    spec: TrialSpec, seed: int, weights: Path, manifest: Manifest, settings: Settings, network: bytes | None, *,
    here: bool = False,
) -> tuple[Outcome, Served]:  # fmt: skip
    """Make a candidate and score it, by one process: a second one would load PyTorch again.

    On a cluster it is only made, since the nodes' processors may compute otherwise than the one that serves.

    Args:
        weights: file for its weights.
        here: in this process, which must have nothing to train.

    Raises:
        As `run_trial` and `score_as_served`.
    """
    if settings.cluster and not here:
        (outcome,) = run_trials(spec, [seed], settings, keep_weights=weights)
        return outcome, score_as_served(spec, manifest, weights, outcome.weights_digest or "", settings, network)
    call = (spec, seed, weights, manifest.to_dict(), settings.device, settings.backend, network)
    if here:
        torch.set_num_threads(1)
        bound_memory(resolve_device(settings.device), settings.training_gpu_share)
        return _make_and_score(*call)
    (made,) = in_children(_make_and_score, [call], settings)
    return made


def _make_and_score(  # noqa: PLR0917
    spec: TrialSpec, seed: int, weights: Path, manifest: dict[str, Any], device: str, backend: Backend,
    network: bytes | None,
) -> tuple[Outcome, Served]:  # fmt: skip
    outcome = run_trial(spec, seed, weights)
    return outcome, _score(spec, manifest, weights, outcome.weights_digest or "", device, backend, network)


def score_as_served(  # noqa: PLR0917
    spec: TrialSpec, manifest: Manifest, weights: Path, digest: str, settings: Settings, network: bytes | None = None
) -> Served:
    """Score a candidate's weights file on the spec's scored rows.

    Args:
        manifest: of the candidate: architecture, size and classes.
        network: by which OpenVINO will compute with them; none: it is converted for this.

    Raises:
        DataChangedError: somebody was erased meanwhile.
        WeightsError: the file is not of this digest or architecture.
    """
    call = (spec, manifest.to_dict(), weights, digest, settings.device, settings.backend, network)
    (found,) = in_children(_score, [call], settings.model_copy(update={"cluster": ""}))
    return found


def _score(  # noqa: PLR0917
    spec: TrialSpec, manifest: dict[str, Any], weights: Path, digest: str, device: str, backend: Backend,
    network: bytes | None,
) -> Served:  # fmt: skip
    content = weights.read_bytes()
    if (found_digest := hashlib.sha256(content).hexdigest()) != digest:
        raise WeightsError(f"Expected the candidate's weights with SHA-256 {digest}, found {found_digest}.")
    checked = CheckedWeights(digest, Manifest.from_dict(manifest), content, network)
    engine = Engine.load(checked, 0, device, backend=backend)
    with intact(spec.images) as faces:
        margins: list[list[NDArray[np.float64]]] = [[] for _ in VIEWS]
        for start in range(0, len(spec.scored), CHUNK):
            rows = spec.scored[start : start + CHUNK]
            images = faces.images[rows]
            for found, view in zip(margins, VIEWS.values(), strict=True):
                shown = np.ascontiguousarray(view(images))
                found.append(audit.margins(engine.logits(shown), faces.labels[rows]))
    views = np.array([np.concatenate(found) for found in margins], dtype=np.float32)
    return Served(views, backend, engine.dtype, "" if network is None else networks.digest_of(network))
