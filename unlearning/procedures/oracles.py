"""Oracle margins of a forget set: margins of its images under models trained without them.

An *oracle* is a model trained without the forget set's subjects (the word is that of Georgiev et al., arXiv
2410.23232). Oracles are trained in advance with seeds of their own, and only their margins are kept; they are never the
reference models by which a method is judged.
"""

import dataclasses

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from unlearning.errors import MethodError
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True)
class OracleExamples(Examples):
    """A forget set with the margins that oracles gave it.

    Attributes:
        oracle_margins: z_y − logsumexp over the other classes, float32 `(n_oracles, n)`; one row for each oracle.
    """

    oracle_margins: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        margins = self.oracle_margins
        if margins.dtype != torch.float32 or margins.ndim != 2 or len(margins) < 1 or margins.shape[1] != len(self):
            raise MethodError(
                f"Expected oracles' margins as float32 (n_oracles, {len(self)}), one column for each image to forget, "
                f"got {margins.dtype} {tuple(margins.shape)}."
            )
        if not bool(torch.isfinite(margins).all()):
            raise MethodError("Expected finite margins of the oracles; build them anew.")

    def to(self, device: torch.device) -> "OracleExamples":
        """Returns the forget set on `device`."""
        plain = super().to(device)
        return OracleExamples(plain.images, plain.labels, self.oracle_margins.to(device, non_blocking=True))


def with_oracles(forget: Examples, margins: ArrayLike) -> OracleExamples:
    """Returns a forget set together with oracle margins.

    Args:
        margins: `(n_oracles, n)`, finite.

    Raises:
        MethodError: margins of another shape, or not finite.
    """
    return OracleExamples(forget.images, forget.labels, torch.as_tensor(margins, dtype=torch.float32))


def oracle_margins(forget: Examples) -> Tensor:
    """Returns the oracles' margins `(n_oracles, n)` that come with a forget set.

    Raises:
        MethodError: the forget set has none.
    """
    if not isinstance(forget, OracleExamples):
        raise MethodError(
            "This method reads what oracles say of the forget set, but nothing came with it; build oracles ahead "
            "(`expunge references build` does where a policy's ladder names the method), or choose another method."
        )
    return forget.oracle_margins
