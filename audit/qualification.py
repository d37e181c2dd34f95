"""Qualification: is a method any good on this data? Judged on a few subjects drawn by lot, ahead of all requests.

The gate judges one candidate and sees nothing of a method's spread from run to run or from subject to subject. So a
method is run many times on each of K probe subjects, and its runs are compared with models retrained without the
subject. The method is qualified if *all* K probe subjects passed every bar.

What K passes say about the other subjects: if a share q of all subjects would pass, K drawn by lot all pass with
probability q^K (a little less without replacement). With confidence 1 − q^K at least a share q of the subjects would
therefore pass; `share_of_subjects` solves it for q. A small K shows little: of eight passes one knows, with 95 %
confidence, that 68 % of the subjects would pass. Where some failed nothing is concluded but that the method did not
qualify.

Figures are of the images as they are, except where views are named. Everything here is a function of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from audit.canaries import Canaries
from audit.checks import Check, Verdict, verdict_of
from audit.errors import BankError, OptionError, in_range
from audit.policy import Policy
from audit.probe_checks import cost_check, forgetting_check, rejected_check, utility_check, views_check
from audit.statistics.distances import detect
from audit.statistics.exposure import ExposedByRuns
from audit.statistics.features import FeaturesOfRuns
from audit.statistics.forgetting import forgetting_ratio
from audit.statistics.intervals import CONFIDENCE, Interval, as_accuracies
from audit.statistics.looks import LooksEvidence, judge_looks
from audit.statistics.margins import Array
from audit.statistics.relearning import Relearning, relearning
from audit.statistics.runs import UNKNOWN, Rejected, learned, rejected_runs, view_figures, view_shifts
from audit.statistics.utility import utility

FEWEST_MODELS = 8
"""References and runs of a probe subject: fewer cannot be halved for F / F_null and still have a spread."""

REJECTED_SHARE_MAX = 0.5
"""Largest share of a probe subject's runs that the gate may reject.

One half, although the gate rejects an exact retrain with probability 5 %: a run that the gate rejects costs the next
rung of the ladder, not a false certificate. The bar asks only that trying the method is worth its price. Whether the
method forgets is asked by F / F_null, over all runs together.
"""


@dataclass(frozen=True)
class Bars:
    """What each probe subject has to reach.

    Raises:
        OptionError: a bar outside [0, 1].
    """

    retain_ratio_min: float
    test_ratio_min: float
    forgetting_ratio_min: float
    cost_share_max: float
    rejected_share_max: float = REJECTED_SHARE_MAX
    view_ratio_min: float = 0.0

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            in_range(name, value, 0.0, 1.0)

    @classmethod
    def of(cls, policy: Policy) -> Bars:
        """The policy's bars of a method."""
        return cls(
            policy.retain_ratio_min, policy.test_ratio_min, policy.forgetting_ratio_min, policy.cost_share_max,
            view_ratio_min=policy.view_ratio_min,
        )  # fmt: skip

    def to_dict(self) -> dict[str, float]:
        """By name."""
        return asdict(self)

    def as_strict_as(self, others: Bars) -> bool:
        """Whether whoever reaches these bars reaches the others too."""
        mine, theirs = self.to_dict(), others.to_dict()
        return all(mine[name] <= theirs[name] if name.endswith("_max") else mine[name] >= theirs[name] for name in mine)


@dataclass(frozen=True)
class ProbeEvidence:
    """What was measured of a method on one probe subject. Arrays are checked and converted at construction.

    Raises:
        BankError: shapes that do not fit together, fewer than `FEWEST_MODELS` references or runs, an infinite or
            missing margin, accuracies outside [0, 1], seconds that are not above 0.
    """

    references: Array
    """Margins of models trained without the subject, `(n_models, n_views, n_images)`; the first view is the image as
    it is."""
    runs: Array
    """The same of the method's runs `(n_runs, n_views, n_images)`."""
    retain_accuracy_references: Array
    """`(n_models,)`, each in [0, 1]; likewise the others."""
    retain_accuracy_runs: Array
    test_accuracy_references: Array
    test_accuracy_runs: Array
    seconds_references: Array
    """Of each training `(n_models,)`."""
    seconds_runs: Array
    """Of each run `(n_runs,)`."""
    originals: Array | None = None
    """Margins of models trained with everybody, `(n_originals, n_views, n_images)`, at least one: how much had been
    learned."""
    curves: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None
    """How runs, references and originals come back when some of the images are learned again, for
    `audit.statistics.relearning`; None: not measured."""
    relearned: ArrayLike = ()
    """Which images were learned again."""
    looks: LooksEvidence = field(default_factory=LooksEvidence)
    """What else was looked at: features, and the margins of retained subjects."""

    def __post_init__(self) -> None:
        for name in ("references", "runs"):
            self._set(name, _margins(name, getattr(self, name), FEWEST_MODELS))
        if self.originals is not None:
            self._set("originals", _margins("originals", self.originals, 1))
        for name in ("runs", "originals"):
            values = getattr(self, name)
            if values is not None and values.shape[1:] != self.references.shape[1:]:
                raise BankError(
                    f"Expected {name} with the views and images of the references, {self.references.shape[1:]}, got "
                    f"{values.shape[1:]}."
                )
        for kind, bank in (("references", self.references), ("runs", self.runs)):
            for set_ in ("retain", "test"):
                name = f"{set_}_accuracy_{kind}"
                self._set(name, as_accuracies(name, getattr(self, name), len(bank)))
            seconds = np.asarray(getattr(self, f"seconds_{kind}"), dtype=np.float64)
            if seconds.shape != (len(bank),) or not (np.isfinite(seconds) & (seconds > 0)).all():
                raise BankError(f"Expected seconds_{kind} of shape ({len(bank)},), all finite and above 0.")
            self._set(f"seconds_{kind}", seconds)

    def _set(self, name: str, value: Array) -> None:
        object.__setattr__(self, name, value)  # frozen for everyone else


@dataclass(frozen=True)
class ProbeFigures:
    """Everything measured of a method on one probe subject."""

    forgetting_ratio: Interval
    """F / F_null; NaN where ε is undetermined for so few models."""
    n_models_a_side: int
    """Models in each half that F compares."""
    detection_p: float
    """p-value of the mean KS distance between runs and references, by permuting models. It has no bar."""
    rejected: Rejected
    learned: Interval | None
    """d′ of the originals, how much had been learned of the subject; None without originals."""
    view_shifts: tuple[float, ...]
    """Of each view, mean margin of the runs less that of the references, in the references' standard deviations over
    models; NaN where these do not vary."""
    view_ratios: tuple[float, ...]
    """F / F_null of each view; NaN as above."""
    view_detection_p: tuple[float, ...]
    """As `detection_p`, of each view. No bar: the worst of ten is below .05 more often than one in twenty."""
    smallest_view_ratio: float
    """F / F_null in the worst view; NaN if it is of any."""
    largest_view_shift: float
    """The one furthest from 0, with its sign; it has no bar."""
    retain_ratio: Interval
    """Mean accuracy of the runs over that of the references, bootstrap over models."""
    test_ratio: Interval
    cost_share: float
    """Median seconds of a run over median seconds of a training."""
    n_references: int
    n_runs: int
    n_originals: int
    n_images: int
    relearning: Relearning | None = None
    """How fast the runs come back; None: not measured. It has no bar."""
    features: FeaturesOfRuns | None = None
    """Runs told apart from retrained models by penultimate features; no bar. None: not measured."""
    exposed: ExposedByRuns | None = None
    """Retained subjects whom the runs expose more than retrained models do; no bar. None: not measured."""


@dataclass(frozen=True)
class Probe:
    """The verdict on one probe subject; without figures where the method gave no model."""

    verdict: Verdict
    checks: tuple[Check, ...]
    figures: ProbeFigures | None

    @property
    def passed(self) -> bool:
        """Every bar was reached; one that could not be decided was not."""
        return self.verdict == "PASSED"

    @property
    def reason(self) -> str:
        """The sentences of the bars that were not reached."""
        return " ".join(check.sentence for check in self.checks if not check.passed)


@dataclass(frozen=True)
class Qualification:
    """The verdict on a method."""

    qualified: bool
    probes: tuple[Probe, ...]
    bars: Bars
    share: float | None
    """Share of the subjects that would pass, a lower limit with `confidence`; None unless all passed."""
    confidence: float
    statement: str
    """What this says about the subjects, and how little."""
    canaries: Canaries | None = None
    """What the gate says of planted subjects; None: there were none."""

    @property
    def n_passed(self) -> int:
        """Probe subjects that passed."""
        return sum(probe.passed for probe in self.probes)

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence for each probe subject that did not pass; none where no method can be judged."""
        if self.canaries is not None and self.canaries.objection:
            return ()
        return tuple(
            f"Probe {number}: {probe.reason}" for number, probe in enumerate(self.probes, 1) if not probe.passed
        )


def judge_probe(evidence: ProbeEvidence, bars: Bars, *, seed: int | np.random.SeedSequence) -> Probe:
    """Compare a method's runs with the references of one probe subject.

    Args:
        evidence: of the probe subject.
        bars: what it has to reach.
        seed: of the halves, permutations and bootstrap samples.
    """
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    of_forgetting, of_detection, of_retain, of_test, of_views, of_relearning, of_looks = root.spawn(7)
    runs, references = evidence.runs[:, 0], evidence.references[:, 0]
    forgetting = forgetting_ratio(
        runs, references, seed=of_forgetting, n_pairs=int(np.clip(2500 // runs.shape[1], 20, 100))
    )
    shifts = view_shifts(evidence.runs, evidence.references)
    ratios, view_p = view_figures(evidence.runs, evidence.references, of_views)
    features, exposed = judge_looks(evidence.looks, of_looks)
    figures = ProbeFigures(
        forgetting_ratio=forgetting.ratio,
        n_models_a_side=forgetting.n_models_a_side,
        detection_p=detect(runs, references, seed=of_detection).ks_combined_p,
        rejected=rejected_runs(evidence.runs, evidence.references),
        learned=None if evidence.originals is None else learned(evidence.references, evidence.originals),
        view_shifts=shifts,
        view_ratios=ratios,
        view_detection_p=view_p,
        smallest_view_ratio=float(np.min(ratios)),
        largest_view_shift=max(shifts, key=lambda shift: -1.0 if math.isnan(shift) else abs(shift)),
        retain_ratio=_ratio(evidence.retain_accuracy_runs, evidence.retain_accuracy_references, of_retain),
        test_ratio=_ratio(evidence.test_accuracy_runs, evidence.test_accuracy_references, of_test),
        cost_share=float(np.median(evidence.seconds_runs) / np.median(evidence.seconds_references)),
        n_references=len(references),
        n_runs=len(runs),
        n_originals=0 if evidence.originals is None else len(evidence.originals),
        n_images=runs.shape[1],
        relearning=None
        if evidence.curves is None
        else relearning(*evidence.curves, evidence.relearned, seed=of_relearning),
        features=features,
        exposed=exposed,
    )
    checks = (
        forgetting_check(figures.forgetting_ratio, figures.n_models_a_side, bars.forgetting_ratio_min),
        *([views_check(figures.smallest_view_ratio, len(ratios), bars.view_ratio_min)] if bars.view_ratio_min else []),
        rejected_check(figures.rejected, bars.rejected_share_max),
        utility_check("retain", figures.retain_ratio, bars.retain_ratio_min),
        utility_check("test", figures.test_ratio, bars.test_ratio_min),
        cost_check(figures.cost_share, bars.cost_share_max),
    )
    return Probe(verdict_of(checks), checks, figures)


def diverged(reason: str) -> Probe:
    """A probe subject on which the method gave no model; one sentence says why."""
    return Probe("FAILED", (Check("diverged", None, None, False, reason),), None)


def unjudged(canaries: Canaries) -> Probe:
    """A probe subject on which no model was made, for the self-test with canaries failed."""
    return Probe("UNDETERMINED", (Check("canaries", None, None, None, canaries.objection),), None)


def conclude(
    probes: Sequence[Probe], bars: Bars, *, confidence: float = CONFIDENCE, canaries: Canaries | None = None
) -> Qualification:
    """The verdict on a method from all its probe subjects, and from what the gate says of canaries if there are any.

    Raises:
        OptionError: no probe subject, or a confidence outside (0, 1).
    """
    n = len(probes)
    share = share_of_subjects(n, confidence=confidence)
    n_passed = sum(probe.passed for probe in probes)
    if canaries is not None and canaries.objection:
        return Qualification(False, tuple(probes), bars, None, confidence, canaries.objection, canaries)
    if n_passed < n:
        statement = f"{n_passed} of {n} probe subjects passed; all have to."
        return Qualification(False, tuple(probes), bars, None, confidence, statement, canaries)
    unlucky, sure, share_percent = 0.8**n, f"{100 * confidence:.0f} %", math.floor(100 * share)
    statement = (
        f"All {n} of {n} probe subjects passed: with {sure} confidence at least {share_percent} % of the subjects "
        f"would. No more is known: a method that fails for one subject in five passes {n} of {n} with "
        f"probability {unlucky:.2f}."
    )
    return Qualification(True, tuple(probes), bars, share, confidence, statement, canaries)


def share_of_subjects(n_probes: int, *, confidence: float = CONFIDENCE) -> float:
    """Largest q for which "all of n passed" gives confidence 1 − q^n that at least a share q of the subjects would.

    This is the exact binomial lower limit (Clopper & Pearson 1934, one-sided) where all trials succeed.
    """
    if n_probes < 1 or not 0 < confidence < 1:
        raise OptionError(f"Expected n_probes >= 1 and confidence in (0, 1), got {n_probes} and {confidence}.")
    return float((1 - confidence) ** (1 / n_probes))


def _ratio(runs: Array, references: Array, seed: np.random.SeedSequence) -> Interval:
    mean = float(runs.mean())  # of no one model: only the banks are compared
    ratio = utility(references, runs, mean, mean, seed=seed).ratio
    return UNKNOWN if ratio is None else ratio


def _margins(name: str, values: ArrayLike, fewest: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 3 or 0 in array.shape or len(array) < fewest:
        raise BankError(
            f"Expected {name} of shape (n_models >= {fewest}, n_views >= 1, n_images >= 1), got {array.shape}."
        )
    if not np.isfinite(array).all():
        raise BankError(f"Expected finite margins in {name}; find the model that diverged and leave it out.")
    return array
