"""Canaries: whether the gate sees, on these data and this recipe, what was planted to be seen.

Of most subjects little is learned, and of those drawn by lot perhaps nothing: then any method passes and any audit
looks good. So subjects whom a model has to learn by heart, images with labels that nothing in them tells, are planted
in a copy of the training split. Models trained without them are references, models trained with them forgot nothing,
and methods forget them. Each canary is judged by itself, as the subject of a request is.

What is known of the answer makes it a test of the audit: models that forgot nothing have to be rejected, else the audit
is blind here; retrained models have to pass, else its verdicts mean nothing here. What it says of a method is beside
that: the share of its runs that the gate rejects. That share has no bar, since canaries are learned harder than most
subjects are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from audit.errors import BankError
from audit.statistics.intervals import CONFIDENCE, Interval, clopper_pearson
from audit.statistics.margins import Array
from audit.statistics.runs import learned, rejected_runs
from audit.statistics.spread import bank_of, finite

SEEN_MIN = 0.5
"""Fewest verdicts on models that forgot nothing, as a share, that have to be rejections."""
RETRAINED_MAX = 0.25
"""Most verdicts on retrained models that may be. At a false positive rate of 5 % four retrained models judged on four
canaries exceed it with probability .001 if the verdicts are independent, .014 if those on one model are all alike."""


@dataclass(frozen=True)
class Rejections:
    """Verdicts of the gate on some models, one for each model and canary."""

    n: int
    n_rejected: int
    share: Interval
    """With its exact binomial interval, as if the verdicts were independent, which those on one model are not."""


@dataclass(frozen=True)
class Canaries:
    """What the gate says of planted subjects."""

    n_canaries: int
    n_images: int
    """Of each."""
    n_references: int
    learned: tuple[float, ...]
    """d′ of each canary: how much models trained with them learned; NaN where the references do not differ."""
    nothing: Rejections
    """Models trained with the canaries, which forgot nothing."""
    retrained: Rejections
    """Models trained without them, others than the references."""
    methods: Mapping[str, Rejections]

    def of(self, method: str) -> Canaries:
        """The same, of the methods only this one."""
        return replace(self, methods={name: told for name, told in self.methods.items() if name == method})

    @property
    def objection(self) -> str:
        """Why no method can be judged here; empty: the gate rejects what it should, and passes what it should."""
        if self.nothing.share.value < SEEN_MIN:
            return (
                f"The audit is blind here: of {self.nothing.n} verdicts on models that had learned {self.n_canaries} "
                f"planted subjects and forgotten nothing the gate rejects {self.nothing.n_rejected}, and at least "
                f"{SEEN_MIN:.0%} have to be. So whatever passes it says nothing of forgetting."
            )
        if self.retrained.share.value > RETRAINED_MAX:
            return (
                f"The gate rejects {self.retrained.n_rejected} of {self.retrained.n} verdicts on models that were "
                f"retrained without {self.n_canaries} planted subjects, more than {RETRAINED_MAX:.0%}: here it cannot "
                "tell forgetting from chance."
            )
        return ""


def judge_canaries(
    references: ArrayLike,
    originals: ArrayLike,
    retrained: ArrayLike,
    methods: Mapping[str, ArrayLike],
    n_canaries: int,
) -> Canaries:
    """What the gate says of planted subjects, of each by itself.

    Args:
        references: margins of models trained without the canaries, `(n_models, n_views, n_canaries · n_images)`,
            canary by canary; likewise the others.
        originals: of models trained with them.
        retrained: of further models trained without them.
        methods: by name, of runs that forgot all canaries together; none of a method that diverged.

    Raises:
        BankError: shapes that do not fit together, or a margin that is not finite.
    """
    out = _parts("references", bank_of("references", references), n_canaries)
    known = _parts("originals", originals, n_canaries)
    return Canaries(
        n_canaries=n_canaries,
        n_images=out.shape[3],
        n_references=out.shape[1],
        learned=tuple(learned(theirs, mine).value for theirs, mine in zip(out, known, strict=True)),
        nothing=_rejections(known, out),
        retrained=_rejections(_parts("retrained", retrained, n_canaries), out),
        methods={name: _rejections(_parts(name, runs, n_canaries), out) for name, runs in methods.items()},
    )


def _rejections(models: Array, references: Array) -> Rejections:
    judged = [rejected_runs(mine, theirs) for mine, theirs in zip(models, references, strict=True)]
    n, k = sum(each.n_runs for each in judged), sum(each.n_rejected for each in judged)
    low, high = clopper_pearson(k, n, alpha=1 - CONFIDENCE)
    return Rejections(n, k, Interval(k / n, float(low), float(high)))


def _parts(name: str, values: ArrayLike, n_canaries: int) -> Array:
    """`(n_canaries, n_models, n_views, n_images)`."""
    bank = finite(name, values)
    if n_canaries < 1 or bank.ndim != 3 or 0 in bank.shape or bank.shape[2] % n_canaries:
        raise BankError(
            f"Expected {name} of shape (n_models, n_views, n_images), as many images of each of {n_canaries} canaries, "
            f"got {bank.shape}."
        )
    return np.stack(np.split(bank, n_canaries, axis=2))
