"""The audit of one candidate: computes every figure and the verdict from the evidence and the policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypedDict

import numpy as np

from audit.checks import Check, Verdict, all_checks, verdict_of
from audit.errors import BankError, PolicyError
from audit.policy import Policy
from audit.staleness import Staleness
from audit.statistics.attack import Attack, attack
from audit.statistics.bounds import Band, Limits, LowerBounds, limits, lower_bounds, threshold_band
from audit.statistics.distances import Detection, detect
from audit.statistics.epsilon import epsilons
from audit.statistics.exchangeability import Exchangeability, exchangeability
from audit.statistics.forgetting import CompetitionScore, ForgettingRatio, competition_score, forgetting_ratio
from audit.statistics.gate import ALPHA, Gate, gate
from audit.statistics.intervals import as_accuracies
from audit.statistics.looks import CandidateLooks, Looked, judge_candidate
from audit.statistics.margins import Array, as_bank, as_banks, as_row
from audit.statistics.spread import PooledSpread
from audit.statistics.utility import Utility, forget_accuracy, utility


@dataclass(frozen=True)
class Views:
    """What the gate reads: margins of every view of the forget set's images. `audit.gate` checks them.

    Attributes:
        deployed: of the candidate, `(n_views, n_examples)`.
        retrained: of the references, `(N, n_views, n_examples)`.
        originals: of models trained with everybody, `(n, n_views, n_examples)`; None if there are none.
        pooled: what other blocks say of the references' spread; None if there are too few.
    """

    deployed: Array
    retrained: Array
    originals: Array | None = None
    pooled: PooledSpread | None = None


@dataclass(frozen=True)
class Evidence:
    """What was measured of a candidate. Arrays are checked and converted to float64 at construction.

    Raises:
        BankError: inconsistent shapes, accuracies outside [0, 1], or a missing cost.
        NotANumberError: a NaN margin, naming model and example.
    """

    retrained: Array
    """Margins of the reference bank `(N, n_examples)`."""
    unlearned: Array | None
    """Margins of the bank of unlearning runs `(M, n_examples)`; None for exact retraining, and where the method was
    qualified ahead instead."""
    deployed: Array
    """Margins `(n_examples,)` of the candidate chosen before the audit."""
    original: Array
    """Margins `(n_examples,)` of the model before unlearning."""
    retain_accuracy_retrained: Array
    """`(N,)`, each in [0, 1]; likewise the others."""
    retain_accuracy_unlearned: Array | None
    retain_accuracy_deployed: float
    retain_accuracy_original: float
    test_accuracy_retrained: Array
    test_accuracy_unlearned: Array | None
    test_accuracy_deployed: float
    test_accuracy_original: float
    cost_share: float | None = None
    """Unlearning seconds over retraining seconds; None only for exact retraining."""
    exact: bool = False
    """Whether the method is exact retraining, which has no bar of cost and needs no unlearned bank."""
    staleness: Staleness = field(default_factory=Staleness)
    """Of the reference bank; by default it was trained on the present data."""
    views: Views | None = None
    """For the gate; without them it is not asked, or undetermined where the policy asks for it."""
    qualification: str | None = None
    """What the method's valid qualification says, in a sentence; None: it has none."""
    looks: CandidateLooks | None = None
    """Features, and retained subjects' margins; without them both questions are not asked."""

    def __post_init__(self) -> None:
        needed = [] if self.exact else ["cost_share"]
        if self.unlearned is not None:
            needed += ["retain_accuracy_unlearned", "test_accuracy_unlearned"]
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise BankError(
                f"Expected {', '.join(missing)} in the evidence; only exact retraining may omit the cost, and only "
                "without a bank of runs may their accuracies be omitted."
            )
        if self.unlearned is None:
            retrained, unlearned = as_bank("retrained", self.retrained, min_models=4), None
        else:
            unlearned, retrained = as_banks(self.unlearned, self.retrained)
        self._set("retrained", retrained)
        self._set("unlearned", unlearned)
        for name in ("deployed", "original"):
            self._set(name, as_row(name, getattr(self, name), retrained.shape[1]))
        for set_ in ("retain", "test"):
            for name, n_models in ((f"{set_}_accuracy_retrained", len(retrained)), *self._unlearned_rows(set_)):
                self._set(name, as_accuracies(name, getattr(self, name), n_models))
            for name in (f"{set_}_accuracy_deployed", f"{set_}_accuracy_original"):
                self._set(name, float(as_accuracies(name, [getattr(self, name)])[0]))
        if self.cost_share is not None and not 0 <= self.cost_share < math.inf:
            raise BankError(f"Expected cost_share >= 0 and finite, got {self.cost_share}.")

    def _unlearned_rows(self, set_: str) -> tuple[tuple[str, int], ...]:
        return () if self.unlearned is None else ((f"{set_}_accuracy_unlearned", len(self.unlearned)),)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for everyone else


@dataclass(frozen=True)
class Evaluation:
    """Verdict, checks and figures of one candidate. Depends on evidence, policy, rung and seed only."""

    verdict: Verdict
    checks: tuple[Check, ...]
    policy: Policy
    rung: int
    method: str
    seed: int
    n_models: int
    """Reference models."""
    n_unlearned: int
    """Unlearning runs in their bank; 0 without one."""
    n_examples: int
    deployed: Exchangeability
    original: Exchangeability
    """The same test of the model before unlearning: the result of a candidate that forgets nothing."""
    score: CompetitionScore | None
    """Official ε, F and score at full N. None without an unlearned bank, like the seven below."""
    exact_epsilons: Array | None
    """ε over all thresholds and intervals, `(n_examples,)`."""
    forgetting: ForgettingRatio | None
    """F / F_null at equal size; the policy's bar is on this ratio."""
    detection: Detection | None
    bounds: LowerBounds | None
    band: Band | None
    attack: Attack | None
    quantile_attack: Attack | None
    retain: Utility
    test: Utility
    forget: Utility
    cost_share: float | None
    limits: Limits
    """The largest values that banks of this size can show."""
    staleness: Staleness
    """How many subjects were erased since the reference models were trained."""
    gate: Gate | None
    """The candidate among the references by all views, with how much had been learned and the power. None without."""
    qualification: str | None
    """What the method's qualification says; None for exact retraining and where a bank of runs was drawn instead."""
    looked: Looked
    """What features, and the margins of retained subjects, say of the candidate, or why they were not asked."""
    evidence: Evidence
    """The arrays, for the report; not part of `to_dict`."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: finite numbers, null for NaN and absent values, "inf" and "-inf" as strings."""
        figures = {item.name: as_json(getattr(self, item.name)) for item in fields(self) if item.name != "evidence"}
        return figures | {"policy": self.policy.to_dict()}


def evaluate(evidence: Evidence, policy: Policy, *, rung: int, seed: int) -> Evaluation:
    """Audit one candidate under a policy.

    Args:
        evidence: margins and accuracies of the candidate, its bank and the reference bank.
        policy: the bars, fixed and logged before the run.
        rung: index into `policy.ladder` of the method that made the candidate.
        seed: of the resampling, the only random part.

    Raises:
        PolicyError: a rung outside the ladder, or `evidence.exact` does not match the rung.
        BankError: fewer than four models in a bank.
    """
    method = policy.method_at(rung)
    if evidence.exact != policy.is_exact(rung):
        raise PolicyError(f"Expected exact={policy.is_exact(rung)} in the evidence of rung {rung} ({method}).")
    if evidence.unlearned is None and not evidence.exact and not policy.qualification:
        raise BankError(
            f"Expected a bank of runs of {method} in the evidence; only exact retraining may omit it, and an "
            "approximate method where the policy asks for its qualification."
        )
    of_comparison, *of_utility = np.random.SeedSequence(seed).spawn(4)
    u, r = evidence.unlearned, evidence.retrained
    compared = _NOTHING if u is None else _compare(evidence, u, of_comparison)
    deployed = exchangeability(evidence.deployed, r)
    retain, test, forget = (
        utility(*accuracies, seed=part)
        for accuracies, part in zip(
            (
                _accuracies(evidence, "retain"),
                _accuracies(evidence, "test"),
                (
                    forget_accuracy(r),
                    None if u is None else forget_accuracy(u),
                    float(forget_accuracy(evidence.deployed[None])[0]),
                    float(forget_accuracy(evidence.original[None])[0]),
                ),
            ),
            of_utility,
            strict=True,
        )
    )
    judged = None if evidence.views is None else _gate(evidence.views, policy, rung)
    looked = judge_candidate(evidence.looks, alpha=policy.level_at(rung, policy.features_alpha) or ALPHA)
    checks = all_checks(
        policy,
        rung=rung,
        n_retrained=len(r),
        n_unlearned=None if u is None else len(u),
        retain=retain,
        test=test,
        deployed=deployed,
        forgetting=compared["forgetting"],
        detection=compared["detection"],
        cost_share=None if evidence.exact else evidence.cost_share,
        staleness=evidence.staleness,
        gate=judged,
        qualification=evidence.qualification,
        looked=looked,
    )
    return Evaluation(
        verdict=verdict_of(checks),
        checks=checks,
        policy=policy,
        rung=rung,
        method=method,
        seed=seed,
        n_models=len(r),
        n_unlearned=0 if u is None else len(u),
        n_examples=r.shape[1],
        deployed=deployed,
        original=exchangeability(evidence.original, r),
        retain=retain,
        test=test,
        forget=forget,
        cost_share=evidence.cost_share,
        limits=limits(len(r) if u is None else min(len(u), len(r))),
        staleness=evidence.staleness,
        gate=judged,
        qualification=evidence.qualification,
        looked=looked,
        evidence=evidence,
        **compared,
    )


def _gate(views: Views, policy: Policy, rung: int) -> Gate:
    return gate(
        views.deployed,
        views.retrained,
        originals=views.originals,
        pooled=views.pooled,
        alpha=policy.level_at(rung, policy.gate_alpha or ALPHA),
    )


class _Compared(TypedDict):
    """The figures that need a bank of unlearned models beside the retrained one."""

    score: CompetitionScore | None
    exact_epsilons: Array | None
    forgetting: ForgettingRatio | None
    detection: Detection | None
    bounds: LowerBounds | None
    band: Band | None
    attack: Attack | None
    quantile_attack: Attack | None


_NOTHING: _Compared = {
    "score": None,
    "exact_epsilons": None,
    "forgetting": None,
    "detection": None,
    "bounds": None,
    "band": None,
    "attack": None,
    "quantile_attack": None,
}


def _compare(evidence: Evidence, u: Array, seed: np.random.SeedSequence) -> _Compared:
    of_forgetting, of_detection, of_bounds, *of_attacks = seed.spawn(5)
    r = evidence.retrained
    retain_u, test_u = evidence.retain_accuracy_unlearned, evidence.test_accuracy_unlearned
    if retain_u is None or test_u is None:
        raise BankError("Expected accuracies of the unlearned bank beside its margins.")
    return _Compared(
        score=competition_score(
            u,
            r,
            retain_accuracy_unlearned=retain_u,
            retain_accuracy_retrained=evidence.retain_accuracy_retrained,
            test_accuracy_unlearned=test_u,
            test_accuracy_retrained=evidence.test_accuracy_retrained,
        ),
        exact_epsilons=epsilons(u, r, mode="exact"),
        forgetting=forgetting_ratio(
            u,
            r,
            seed=of_forgetting,
            # F of a large forget set varies less and costs more, so fewer draws do
            n_pairs=int(np.clip(2500 // u.shape[1], 20, 100)),
            retain_accuracy=evidence.retain_accuracy_retrained,
            test_accuracy=evidence.test_accuracy_retrained,
        ),
        detection=detect(u, r, seed=of_detection),
        bounds=lower_bounds(u, r, seed=of_bounds),
        band=threshold_band(u, r),
        attack=attack(u, r, seed=of_attacks[0], form="gaussian"),
        quantile_attack=attack(u, r, seed=of_attacks[1], form="quantile"),
    )


def _accuracies(evidence: Evidence, set_: str) -> tuple[Array, Array | None, float, float]:
    """Accuracies of both banks and of the deployed and the original model on the retain or test set."""
    kinds = ("retrained", "unlearned", "deployed", "original")
    retrained, unlearned, deployed, original = (getattr(evidence, f"{set_}_accuracy_{kind}") for kind in kinds)
    return retrained, unlearned, deployed, original


def as_json(value: Any) -> Any:
    """Dataclasses, arrays and numbers as plain JSON; NaN becomes null, infinities the strings "inf" and "-inf"."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: as_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
