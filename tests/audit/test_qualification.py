"""Qualification: against loops and counting, and on simulated methods.

Simulations have fixed seeds. The rates they are held to are stated where they stand.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from audit.checks import SETS
from audit.errors import BankError, OptionError
from audit.policy import PRESETS
from audit.proof.statement import json_ready
from audit.qualification import (
    FEWEST_MODELS,
    REJECTED_SHARE_MAX,
    Bars,
    Probe,
    ProbeEvidence,
    conclude,
    diverged,
    judge_probe,
    share_of_subjects,
)
from audit.statistics.forgetting import forgetting_ratio
from audit.statistics.gate import gate
from audit.statistics.runs import learned, rejected_runs, view_shifts
from audit.statistics.spread import tail_mean

BARS = Bars.of(PRESETS["standard"])
SHAPE = (4, 5)


def bank(rng: np.random.Generator, n_models: int, *, shift: float = 0.0) -> np.ndarray:
    """Margins whose luck a model's images and views share in part; `shift` in about one standard deviation of T."""
    common, image = rng.normal(size=(n_models, 1, 1)), rng.normal(size=(n_models, 1, SHAPE[1]))
    own = rng.normal(size=(n_models, *SHAPE))
    return 3.0 + shift + 0.8 * common + 0.5 * image + 0.3 * own


def evidence(rng: np.random.Generator, *, shift: float = 0.0, n: int = 24, **changes: Any) -> ProbeEvidence:
    values: dict[str, Any] = {
        "references": bank(rng, n),
        "runs": bank(rng, n, shift=shift),
        "retain_accuracy_references": rng.uniform(0.95, 1.0, n),
        "retain_accuracy_runs": rng.uniform(0.95, 1.0, n),
        "test_accuracy_references": rng.uniform(0.7, 0.8, n),
        "test_accuracy_runs": rng.uniform(0.7, 0.8, n),
        "seconds_references": rng.uniform(9, 11, n),
        "seconds_runs": rng.uniform(0.9, 1.1, n),
        "originals": bank(rng, 1, shift=3.0),
    }
    return ProbeEvidence(**{**values, **changes})


def qualify(rng: np.random.Generator, shift: float, n_probes: int = 4) -> bool:
    """Whether a method qualifies. A probe subject that fails is enough, see below: those after it are not judged."""
    drawn = [evidence(rng, shift=shift) for _ in range(n_probes)]
    probes = (judge_probe(each, BARS, seed=k) for k, each in enumerate(drawn))
    passed = list(itertools.takewhile(lambda probe: probe.passed, probes))
    return len(passed) == n_probes and conclude(passed, BARS).qualified


def checks_of(probe: Probe) -> dict[str, bool | None]:
    return {check.name: check.passed for check in probe.checks}


# The whole


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_exact_retrains_qualify_and_a_method_that_does_nothing_does_not() -> None:
    """Of 12 repetitions with 4 probe subjects: a perfect method all but one at least, of one that leaves 3 standard
    deviations none."""
    rng = np.random.default_rng(1)
    assert sum(qualify(rng, 0.0) for _ in range(12)) >= 11
    assert not any(qualify(rng, 3.0) for _ in range(6))


@pytest.mark.parametrize("n", [1, 3, 8, 20])
def test_the_share_of_subjects_is_the_binomial_limit(n: int) -> None:
    """Its twin: of shares in steps of 0.001 the largest with which n passes in n trials have a probability of 5 %."""
    naive = max(q / 1000 for q in range(1001) if math.prod(itertools.repeat(q / 1000, n)) <= 0.05)
    assert share_of_subjects(n) == pytest.approx(naive, abs=0.0011)
    assert share_of_subjects(n) == pytest.approx(stats.binomtest(n, n, alternative="greater").proportion_ci().low)


def test_a_statement_promises_no_more_than_it_knows() -> None:
    probe = judge_probe(evidence(np.random.default_rng(2)), BARS, seed=0)
    assert probe.passed, probe.reason
    found = conclude([probe] * 8, BARS)
    assert found.qualified
    assert found.share == pytest.approx(0.6877, abs=1e-4)
    assert found.statement == (
        "All 8 of 8 probe subjects passed: with 95 % confidence at least 68 % of the subjects would. No more is known: "
        "a method that fails for one subject in five passes 8 of 8 with probability 0.17."
    )
    assert found.reasons == ()


def test_one_probe_subject_that_fails_is_enough() -> None:
    passed = judge_probe(evidence(np.random.default_rng(2)), BARS, seed=0)
    lost = diverged("remix diverged: weights that are not numbers.")
    found = conclude([passed, passed, lost], BARS)
    assert not found.qualified
    assert found.share is None
    assert found.statement == "2 of 3 probe subjects passed; all have to."
    assert found.reasons == ("Probe 3: remix diverged: weights that are not numbers.",)
    assert "confidence" not in found.statement


@pytest.mark.parametrize(("n", "confidence"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_nothing_is_said_of_nobody(n: int, confidence: float) -> None:
    with pytest.raises(OptionError):
        share_of_subjects(n, confidence=confidence)


# Figures


def test_rejected_runs_are_counted_one_by_one() -> None:
    rng = np.random.default_rng(3)
    references, runs = bank(rng, 12), np.concatenate([bank(rng, 5), bank(rng, 4, shift=4), bank(rng, 3, shift=-5)])
    found = rejected_runs(runs, references)
    naive = [gate(run, references) for run in runs]
    assert found.n_rejected == sum(not each.passed for each in naive)
    assert found.share.value == found.n_rejected / 12
    assert found.n_too_high >= 3
    assert found.n_too_low >= 2
    interval = stats.binomtest(found.n_rejected, 12).proportion_ci(method="exact")
    assert (found.share.low, found.share.high) == pytest.approx((interval.low, interval.high))


def test_shifts_of_views_are_those_of_loops() -> None:
    rng = np.random.default_rng(4)
    references, runs = bank(rng, 9), bank(rng, 11)
    runs[:, 2] += 5.0
    found = view_shifts(runs, references)
    for view in range(SHAPE[0]):
        mine = [float(np.mean(run[view])) for run in runs]
        theirs = [float(np.mean(reference[view])) for reference in references]
        centre = sum(theirs) / 9
        spread = math.sqrt(sum((value - centre) ** 2 for value in theirs) / 8)
        assert found[view] == pytest.approx((sum(mine) / 11 - centre) / spread)
    of_probe = judge_probe(
        evidence(rng, n=8, references=references[:8], runs=runs[:8]), replace(BARS, rejected_share_max=1.0), seed=0
    )
    assert of_probe.figures is not None
    assert of_probe.figures.largest_view_shift == max(of_probe.figures.view_shifts, key=abs)
    assert of_probe.figures.view_shifts.index(of_probe.figures.largest_view_shift) == 2


def test_each_view_has_its_own_figures_and_the_worst_one_a_bar() -> None:
    """A method that forgot the images as they are and still knows them in one other view."""
    rng = np.random.default_rng(6)
    references, runs = bank(rng, 24), bank(rng, 24)
    knows = runs.copy()
    knows[:, 3] += 6.0
    forgot, known = (
        judge_probe(evidence(rng, references=references, runs=each), BARS, seed=0) for each in (runs, knows)
    )
    assert forgot.figures is not None
    assert known.figures is not None
    assert len(known.figures.view_ratios) == len(known.figures.view_detection_p) == SHAPE[0]
    assert known.figures.smallest_view_ratio == min(known.figures.view_ratios) == known.figures.view_ratios[3]
    assert known.figures.view_ratios[:3] == forgot.figures.view_ratios[:3]
    assert known.figures.view_detection_p[3] < 0.01
    checks = {check.name: check for check in known.checks}
    assert checks["view_ratio"].passed is False
    assert checks["view_ratio"].sentence.startswith("In the worst of 4 views of the images forgetting quality is ")
    assert checks["forgetting_ratio"].passed is True
    assert {check.name: check.passed for check in forgot.checks}["view_ratio"] is True
    twin = [forgetting_ratio(runs[:, v], references[:, v], seed=v, n_pairs=100).ratio.value for v in range(SHAPE[0])]
    assert forgot.figures.view_ratios == pytest.approx(twin, abs=0.15)  # other halves


def test_without_a_bar_views_are_reported_only() -> None:
    rng = np.random.default_rng(7)
    probe = judge_probe(evidence(rng), replace(BARS, view_ratio_min=0.0), seed=0)
    assert "view_ratio" not in {check.name for check in probe.checks}
    assert probe.figures is not None
    assert probe.figures.smallest_view_ratio > 0


def test_what_was_learned_is_told_from_one_original_or_from_several() -> None:
    rng = np.random.default_rng(5)
    references, originals = bank(rng, 20), bank(rng, 12, shift=3.0)
    several, one = learned(references, originals), learned(references, originals[:1])
    expected = gate(originals[0], references, originals=originals).learned
    assert expected is not None
    assert several.value == expected.value
    of_out = tail_mean(references)
    assert one.value == pytest.approx((float(tail_mean(originals[0])) - of_out.mean()) / of_out.std(ddof=1))
    assert one.low < several.value < one.high
    assert one.high - one.low > several.high - several.low


def test_the_interval_of_one_original_covers_the_truth() -> None:
    """95 % nominal; of 400 draws the central 99.9 % of the binomial is 364 to 393."""
    rng, n_covered = np.random.default_rng(6), 0
    for _ in range(400):
        out, one = rng.normal(size=(24, 1, 1)), rng.normal(2.0, size=(1, 1, 1))
        n_covered += 2.0 in learned(out, one)
    assert 364 <= n_covered <= 400


def test_figures_are_plain_json_without_ids() -> None:
    probe = judge_probe(evidence(np.random.default_rng(7)), BARS, seed=0)
    text = json.dumps(json_ready(probe), allow_nan=False)
    assert json.loads(text)["figures"]["n_images"] == SHAPE[1]


def test_equal_seeds_give_equal_probes() -> None:
    one, other = (judge_probe(evidence(np.random.default_rng(8)), BARS, seed=3) for _ in range(2))
    assert one == other


# Bars


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"retain_accuracy_runs": np.full(24, 0.5)}, "retain_ratio"),
        ({"test_accuracy_runs": np.full(24, 0.3)}, "test_ratio"),
        ({"seconds_runs": np.full(24, 5.0)}, "cost_share"),
    ],
)
def test_each_bar_fails_alone_and_says_so(changes: dict[str, Any], name: str) -> None:
    probe = judge_probe(evidence(np.random.default_rng(9), **changes), BARS, seed=0)
    assert [check for check, passed in checks_of(probe).items() if not passed] == [name]
    (said,) = (check.sentence for check in probe.checks if check.name == name)
    assert probe.reason == said
    assert "bar is" in said


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"retain_accuracy_runs": np.full(24, 0.97), "retain_accuracy_references": np.ones(24)}, "retain_ratio"),
        ({"test_accuracy_runs": np.full(24, 0.97), "test_accuracy_references": np.ones(24)}, "test_ratio"),
        ({"seconds_runs": np.full(24, 2.0), "seconds_references": np.full(24, 10.0)}, "cost_share"),
    ],
)
def test_who_is_exactly_at_the_bar_has_reached_it(changes: dict[str, Any], name: str) -> None:
    assert checks_of(judge_probe(evidence(np.random.default_rng(14), **changes), BARS, seed=0))[name] is True


@pytest.mark.parametrize(("n_bad", "passed"), [(12, True), (13, False)])
def test_half_of_the_runs_may_be_rejected_and_no_more(n_bad: int, passed: bool) -> None:
    rng = np.random.default_rng(15)
    references = bank(rng, 24)
    runs = np.repeat(references.mean(axis=0)[None], 24, axis=0)
    runs[:n_bad] += 50.0
    probe = judge_probe(evidence(rng, references=references, runs=runs), BARS, seed=0)
    assert probe.figures is not None
    assert probe.figures.rejected.n_rejected == n_bad
    assert checks_of(probe)["rejected_share"] is passed


def test_what_forgot_nothing_fails_by_both_tests() -> None:
    probe = judge_probe(evidence(np.random.default_rng(10), shift=4.0), BARS, seed=0)
    assert checks_of(probe)["forgetting_ratio"] is False
    assert checks_of(probe)["rejected_share"] is False
    assert "as having forgotten too little" in probe.reason


def test_what_cannot_be_decided_does_not_pass() -> None:
    """References without spread leave the gate blind, and of equal banks every rule of ε is dropped."""
    constant = np.ones((24, *SHAPE))
    probe = judge_probe(evidence(np.random.default_rng(11), references=constant, runs=constant), BARS, seed=0)
    assert probe.verdict == "UNDETERMINED"
    assert not probe.passed
    assert checks_of(probe)["forgetting_ratio"] is None
    assert checks_of(probe)["rejected_share"] is None
    assert "undetermined with 12 models a side; draw more references and runs" in probe.reason
    assert not conclude([probe], BARS).qualified


def test_no_held_out_subject_is_answered_correctly() -> None:
    nothing = {"test_accuracy_references": np.zeros(24), "test_accuracy_runs": np.zeros(24)}
    probe = judge_probe(evidence(np.random.default_rng(12), **nothing), BARS, seed=0)
    assert probe.verdict == "UNDETERMINED"
    assert SETS["test"] in probe.reason


def test_bars_are_the_policys_and_can_be_compared() -> None:
    strict = Bars.of(PRESETS["strict"])
    assert (BARS.forgetting_ratio_min, BARS.rejected_share_max) == (0.5, REJECTED_SHARE_MAX)
    assert strict.as_strict_as(BARS)
    assert not BARS.as_strict_as(strict)
    assert BARS.as_strict_as(BARS)
    assert Bars(**BARS.to_dict()) == BARS
    with pytest.raises(OptionError):
        replace(BARS, cost_share_max=1.5)


@given(st.sampled_from(sorted(BARS.to_dict())), st.floats(0, 1), st.floats(0, 1))
def test_stricter_bars_are_stricter_in_the_right_direction(name: str, one: float, other: float) -> None:
    mine, theirs = replace(BARS, **{name: one}), replace(BARS, **{name: other})
    assert mine.as_strict_as(theirs) == (one <= other if name.endswith("_max") else one >= other)


# Bad input


@pytest.mark.parametrize(
    "changes",
    [
        {"references": np.zeros((FEWEST_MODELS - 1, *SHAPE))},
        {"runs": np.zeros((24, SHAPE[1]))},
        {"runs": np.zeros((24, 4, 6))},
        {"runs": np.full((24, *SHAPE), np.inf)},
        {"originals": np.zeros((1, 3, 5))},
        {"seconds_runs": np.zeros(24)},
        {"seconds_references": np.ones(23)},
        {"retain_accuracy_runs": np.ones(23)},
        {"test_accuracy_references": np.full(24, 1.5)},
    ],
)
def test_evidence_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BankError, match="Expected"):
        evidence(np.random.default_rng(13), **changes)
