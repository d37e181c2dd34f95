"""Contents of an audit report, and the same as JSON. `audit.report.page` renders the page.

The report shows no image unless the caller passes thumbnails: it is about subjects who asked to be erased.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from audit.errors import BankError
from audit.proof.statement import json_ready
from audit.report import wording
from audit.statistics.epsilon import epsilons

if TYPE_CHECKING:
    from audit.evaluation import Evaluation

Array = NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BUCKET = 0.5


@dataclass(frozen=True)
class Roc:
    """Curve of an attack that tells unlearned from retrained models; rates `(n_points,)` in [0, 1]."""

    attack: str
    false_positive_rate: Sequence[float]
    true_positive_rate: Sequence[float]
    auc: float


@dataclass(frozen=True)
class Report:
    """Contents of a report.

    Args:
        evaluation: `Evaluation.to_dict()`.
        retrained: margins `(N, n_examples)` of the reference bank.
        unlearned: margins `(M, n_examples)` of the unlearned bank; None for exact retraining.
        original, deployed: margins `(n_examples,)` of the model before unlearning and of the audited one.
        title, subject: of the page; never a user id.
        created_at: aware datetime.
        provenance, cost: rows of these tables, name to value.
        labels: name of each image; by default "Image 1", "Image 2", …
        thumbnails: PNG bytes or None for each image; empty to show none.
        roc: the strongest attack.

    Raises:
        BankError: arrays that do not fit together.
    """

    evaluation: Mapping[str, Any]
    retrained: Array
    unlearned: Array | None
    original: Array
    deployed: Array
    title: str
    subject: str
    created_at: datetime
    provenance: Mapping[str, str] = field(default_factory=dict)
    cost: Mapping[str, str] = field(default_factory=dict)
    labels: Sequence[str] = ()
    thumbnails: Sequence[bytes | None] = ()
    roc: Roc | None = None

    def __post_init__(self) -> None:
        n = np.shape(self.original)[-1]
        shapes = [np.shape(self.retrained)[1:], np.shape(self.deployed)]
        shapes += [] if self.unlearned is None else [np.shape(self.unlearned)[1:]]
        if any(shape != (n,) for shape in shapes):
            raise BankError(f"Expected margins of the same {n} examples everywhere, got {shapes}.")
        for name in ("labels", "thumbnails"):
            if len(getattr(self, name)) not in (0, n):
                raise BankError(f"Expected no {name} or {n}, got {len(getattr(self, name))}.")
        if self.created_at.tzinfo is None:
            raise BankError(f"Expected an aware datetime, got the naive {self.created_at!r}.")

    @property
    def names(self) -> list[str]:
        """Name of each image."""
        return list(self.labels) or [f"Image {i + 1}" for i in range(np.shape(self.original)[-1])]


def report_of(evaluation: Evaluation, **contents: Any) -> Report:
    """Report of an evaluation with its arrays and its strongest attack; `contents` are further fields of `Report`."""
    evidence = evaluation.evidence
    contents.setdefault("roc", _strongest(evaluation))
    return Report(
        evaluation=evaluation.to_dict(),
        retrained=evidence.retrained,
        unlearned=evidence.unlearned,
        original=evidence.original,
        deployed=evidence.deployed,
        **contents,
    )


def _strongest(evaluation: Evaluation) -> Roc | None:
    """The form of the membership inference attack whose area is farther from ½; None without an unlearned bank."""
    attacks = [attack for attack in (evaluation.attack, evaluation.quantile_attack) if attack is not None]
    if not attacks:
        return None
    best = max(attacks, key=lambda attack: abs(attack.auc.value - 0.5))
    return Roc(
        f"offline likelihood ratio, {best.form} form", best.roc_fpr.tolist(), best.roc_tpr.tolist(), best.auc.value
    )


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain JSON values: the evaluation, and the tables behind the drawings."""
    buckets = epsilon_buckets(report)
    content = {
        "title": report.title,
        "subject": report.subject,
        "created_at": report.created_at,
        "verdict": report.evaluation["verdict"],
        "learned": wording.learned_sentences(report.evaluation),
        "sentences": wording.verdict_sentences(report.evaluation),
        "evaluation": report.evaluation,
        "quantiles": QUANTILES,
        "distributions": {kind: quantiles(values) for kind, values in margins_by_kind(report).items()},
        "examples": [
            {
                "name": name,
                "original": report.original[i],
                "deployed": report.deployed[i],
                "retrained": quantiles(report.retrained[:, i]),
                "unlearned": None if report.unlearned is None else quantiles(report.unlearned[:, i]),
                "epsilon": example_epsilons(report)[i],
            }
            for i, name in enumerate(report.names)
        ],
        "epsilon_buckets": None
        if buckets is None
        else {"from": buckets.edges[:-1], "unlearned": buckets.unlearned, "null": buckets.null},
        "roc": report.roc,
        "cost": report.cost,
        "provenance": report.provenance,
        "limits": wording.limits(report.evaluation),
    }
    ready: dict[str, Any] = json_ready(content)
    return ready


@dataclass(frozen=True)
class EpsilonBuckets:
    """Shares of the determined examples in each bucket of ε, for the unlearned bank and without any difference."""

    edges: Array  # (n_buckets + 1,), the last one infinite
    unlearned: Array  # (n_buckets,)
    null: Array  # (n_buckets,)
    n_models_a_side: int
    n_draws: int


def epsilon_buckets(report: Report) -> EpsilonBuckets | None:
    """ε of unlearned against retrained halves, and between disjoint halves of the retrained bank, pooled over draws.

    Both use halves of one size, because ε depends on the number of models. None without an unlearned bank, or with
    fewer than two models a half.
    """
    u, r = report.unlearned, report.retrained
    if u is None or (m := min(len(r) // 2, len(u))) < 2:
        return None
    n_draws = int(np.clip(200 // r.shape[1], 1, 20))
    rng = np.random.default_rng(report.evaluation["seed"])
    edges = np.append(np.arange(0, math.ceil(math.log(max(m - 1, 2))) + BUCKET, BUCKET), np.inf)
    counts = np.zeros((2, len(edges) - 1))
    for _ in range(n_draws):
        left, right = np.split(rng.permutation(len(r))[: 2 * m], 2)
        mine = rng.permutation(len(u))[:m]
        for kind, bank in enumerate((u[mine], r[right])):
            known = epsilons(bank, r[left])
            counts[kind] += np.histogram(known[~np.isnan(known)], edges)[0]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return EpsilonBuckets(edges, shares[0], shares[1], m, n_draws)


def margins_by_kind(report: Report) -> dict[str, Array]:
    """Margins by kind of model."""
    kinds = {"Retrained models": report.retrained, "Unlearned models": report.unlearned}
    kinds |= {"Audited model": report.deployed, "Original model": report.original}
    return {kind: np.asarray(values) for kind, values in kinds.items() if values is not None}


def quantiles(values: Array) -> list[float]:
    """The `QUANTILES` of all values together."""
    return [float(q) for q in np.quantile(np.asarray(values).ravel(), QUANTILES, method="closest_observation")]


def example_epsilons(report: Report) -> Sequence[float | None]:
    """ε of each image; None where it is undetermined or was not measured."""
    score = report.evaluation.get("score")
    found: Sequence[float | None] = score["forgetting"]["epsilons"] if score else [None] * len(report.names)
    return found
