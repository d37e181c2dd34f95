"""Membership inference attack on unlearned models: can an attacker tell that an example was a training example?

U-LiRA (Hayes et al., arXiv 2403.01218) in its offline form (Carlini et al., arXiv 2112.03570, section 6). The attacker
knows the distribution of an example's margin over reference models (shadow models) trained without it (OUT), and scores
the attacked model by how far its margin lies above this distribution:

* `gaussian`: number of standard deviations above the mean, margins being about normal;
* `quantile`: share of reference models below it; assumes no shape, for few models or unusual margins.

Half of the retrained models are the reference models; the unlearned models and the other half are attacked. Then the
halves are exchanged. The AUC says how well unlearned and retrained models are told apart on average (½: not at all),
the TPR at 1 % FPR how well the most exposed ones are. An AUC below ½ means that forgetting went too far: the margins
are lower than under models trained without the examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from audit.errors import BankError, OptionError
from audit.statistics.epsilon import SATURATION
from audit.statistics.intervals import CONFIDENCE, Interval, percentiles
from audit.statistics.margins import Array, as_banks

Form = Literal["gaussian", "quantile"]
FPR = 0.01
_GRID = np.linspace(0.0, 1.0, 201)
_CHUNK_BYTES = 16_000_000


@dataclass(frozen=True)
class Attack:
    """Result of the attack; positives are unlearned models, negatives retrained ones."""

    form: Form
    auc: Interval
    """Over all (model, example) pairs; interval by bootstrap over models."""
    tpr_at_fpr: Interval
    """TPR at 1 % FPR, likewise."""
    auc_forget_set: Interval
    """AUC with each model's scores averaged over the forget set: the attacker knows which examples belong together."""
    roc_fpr: Array
    """ROC of (model, example) pairs at 201 FPRs from 0 to 1."""
    roc_tpr: Array


def attack(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    *,
    seed: int | np.random.SeedSequence,
    form: Form = "gaussian",
    n_draws: int = 100,
    confidence: float = CONFIDENCE,
) -> Attack:
    """Offline U-LiRA of unlearned against retrained models `(n_models, n_examples)`.

    Args:
        unlearned: margins.
        retrained: margins.
        seed: of the split into shadow and attacked models, and of the bootstrap.
        form: see the module's text.
        n_draws: bootstrap draws over models.
        confidence: of the intervals.

    Raises:
        BankError: fewer than four retrained models, or banks that do not match.
        OptionError: unknown form.
    """
    if form not in ("gaussian", "quantile"):
        raise OptionError(f"Expected form to be 'gaussian' or 'quantile', got {form!r}.")
    u, r = as_banks(unlearned, retrained)
    if len(r) < 4:
        raise BankError(f"Expected at least 4 retrained models, half of them as shadow models, got {len(r)}.")
    u, r = np.clip(u, -SATURATION, SATURATION), np.clip(r, -SATURATION, SATURATION)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(r))
    halves = r[order[: len(r) // 2]], r[order[len(r) // 2 :]]
    figures, curves = [], []
    for shadow, attacked in (halves, halves[::-1]):
        positives, negatives = _scores(u, shadow, form), _scores(attacked, shadow, form)
        weights = _weights(len(positives), n_draws, rng), _weights(len(negatives), n_draws, rng)
        areas, tprs, curve = _rocs(positives, negatives, *weights)
        together = _rocs(positives.mean(axis=1)[:, None], negatives.mean(axis=1)[:, None], *weights)[0]
        figures.append((areas, tprs, together))  # each (1 + n_draws,), the unweighted one first
        curves.append(curve)
    auc, tpr, auc_set = (percentiles(row[0], row[1:], confidence=confidence) for row in np.mean(figures, axis=0))
    return Attack(form, auc, tpr, auc_set, _GRID, np.mean(curves, axis=0))


def _scores(models: Array, shadow: Array, form: Form) -> Array:
    """Score of every model and example; higher is more like a member. Shape of `models`."""
    if form == "gaussian":
        # the floor keeps scores finite and ordered where all shadow models have equal margins
        return (models - shadow.mean(axis=0)) / np.maximum(shadow.std(axis=0, ddof=1), 1e-9)
    ordered = np.sort(shadow, axis=0)
    scores = np.empty_like(models)
    for i in range(models.shape[1]):
        column, value = ordered[:, i], models[:, i]
        scores[:, i] = np.searchsorted(column, value, "left") + np.searchsorted(column, value, "right")
    return scores / (2 * len(shadow))


def _weights(n_models: int, n_draws: int, rng: np.random.Generator) -> Array:
    """Weights `(1 + n_draws, n_models)`, each row summing to 1: equal ones on top, then bootstrap samples."""
    even = np.full(n_models, 1 / n_models)
    return np.concatenate([even[None], rng.multinomial(n_models, even, size=n_draws) / n_models])


def _rocs(positives: Array, negatives: Array, weights_p: Array, weights_n: Array) -> tuple[Array, Array, Array]:
    """ROC of the rule "score ≥ t" for every weighting of the models.

    The points are joined by lines (randomised rules between thresholds), so ties count half in the area.

    Args:
        positives: scores `(n_positive_models, n_examples)`.
        negatives: scores `(n_negative_models, n_examples)`.
        weights_p: `(n_weightings, n_positive_models)`.
        weights_n: `(n_weightings, n_negative_models)`.

    Returns:
        areas `(n_weightings,)`, TPRs at 1 % FPR `(n_weightings,)`, the first weighting's TPR at `_GRID`.
    """
    n_examples = positives.shape[1]
    pooled = np.concatenate([positives.ravel(), negatives.ravel()])
    order = np.argsort(-pooled, kind="stable")
    model = order // n_examples  # positive models first
    ends = np.flatnonzero(np.append(np.diff(pooled[order]) != 0, True))  # the last of equal scores
    chunk = max(1, _CHUNK_BYTES // (8 * len(order)))
    areas, tprs = np.empty(len(weights_p)), np.empty(len(weights_p))
    curve = np.empty(len(_GRID))
    for start in range(0, len(weights_p), chunk):
        part = slice(start, start + chunk)
        zero = np.zeros((len(weights_p[part]), 1))
        no_p, no_n = np.zeros_like(weights_p[part]), np.zeros_like(weights_n[part])
        hits = np.concatenate([weights_p[part], no_n], axis=1)[:, model].cumsum(axis=1)[:, ends] / n_examples
        alarms = np.concatenate([no_p, weights_n[part]], axis=1)[:, model].cumsum(axis=1)[:, ends] / n_examples
        hits, alarms = np.concatenate([zero, hits], axis=1), np.concatenate([zero, alarms], axis=1)
        areas[part] = ((hits[:, 1:] + hits[:, :-1]) * np.diff(alarms)).sum(axis=1) / 2
        tprs[part] = [np.interp(FPR, x, y) for x, y in zip(alarms, hits, strict=True)]
        if start == 0:
            curve = np.interp(_GRID, alarms[0], hits[0])
    return areas, tprs, curve
