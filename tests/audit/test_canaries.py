"""What the gate says of canaries, on simulated margins; seeds are fixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from audit.canaries import Canaries, judge_canaries
from audit.errors import BankError
from audit.qualification import Bars, Probe, conclude, unjudged
from audit.statistics.gate import gate

K, N_IMAGES = 4, 6


def bank(rng: np.random.Generator, n: int, *, shift: float = 0.0) -> np.ndarray:
    """Margins `(n, 3, K · N_IMAGES)`; `shift` in about one standard deviation of T."""
    canary = np.repeat(rng.normal(size=(n, 1, K)), N_IMAGES, axis=2)
    return shift + canary + 0.3 * rng.normal(size=(n, 3, K * N_IMAGES))


def judged(rng: np.random.Generator, *, learned: float = 6.0, retrained: float = 0.0) -> Canaries:
    runs = {"half": bank(rng, 8, shift=3.0), "whole": bank(rng, 8)}
    return judge_canaries(bank(rng, 8), bank(rng, 4, shift=learned), bank(rng, 4, shift=retrained), runs, K)


def test_each_canary_is_judged_by_itself() -> None:
    rng = np.random.default_rng(0)
    references, originals, retrained, runs = bank(rng, 8), bank(rng, 4, shift=4.0), bank(rng, 4), bank(rng, 8, shift=2)
    found = judge_canaries(references, originals, retrained, {"method": runs}, K)

    def rejected(models: np.ndarray) -> int:
        n = 0
        for canary in range(K):
            mine = slice(canary * N_IMAGES, (canary + 1) * N_IMAGES)
            n += sum(not gate(model[:, mine], references[:, :, mine]).passed for model in models)
        return n

    assert (found.nothing.n, found.retrained.n, found.methods["method"].n) == (4 * K, 4 * K, 8 * K)
    assert found.nothing.n_rejected == rejected(originals)
    assert found.retrained.n_rejected == rejected(retrained)
    assert found.methods["method"].n_rejected == rejected(runs)
    assert (found.n_canaries, found.n_images, found.n_references) == (K, N_IMAGES, 8)
    assert len(found.learned) == K


def test_an_audit_that_sees_has_no_objection() -> None:
    """Of 40 audits with d′ of 6 all but two at least."""
    rng = np.random.default_rng(1)
    assert sum(judged(rng).objection == "" for _ in range(40)) >= 38


def test_a_blind_audit_says_so() -> None:
    found = judged(np.random.default_rng(2), learned=0.0)
    assert found.objection.startswith("The audit is blind here: of 16 verdicts on models that had learned 4 planted")


def test_models_that_do_not_differ_are_a_blind_audit() -> None:
    rng = np.random.default_rng(3)
    same = np.repeat(bank(rng, 1), 8, axis=0)
    found = judge_canaries(same, same[:4], same[:4], {}, K)
    assert "blind" in found.objection
    assert np.isnan(found.learned).all()


def test_an_audit_that_rejects_retrained_models_says_so() -> None:
    found = judged(np.random.default_rng(4), retrained=6.0)
    assert "retrained without 4 planted subjects, more than 25%" in found.objection


def test_where_the_audit_is_blind_no_method_qualifies() -> None:
    bars = Bars(0.0, 0.0, 0.0, 1.0)
    passing = Probe("PASSED", (), None)
    sees, blind = judged(np.random.default_rng(1)), judged(np.random.default_rng(2), learned=0.0)
    assert conclude([passing] * 3, bars, canaries=sees).qualified
    assert conclude([passing] * 3, bars).canaries is None
    for probes in ([passing] * 3, [unjudged(blind)] * 3):
        found = conclude(probes, bars, canaries=blind)
        assert not found.qualified
        assert found.statement == blind.objection
        assert found.reasons == ()
        assert found.share is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_canaries": 5}, "as many images of each of 5 canaries"),
        ({"n_canaries": 0}, "as many images of each of 0 canaries"),
        ({"references": np.zeros((1, 3, 24))}, "Expected at least 2 models in references"),
        ({"originals": np.full((4, 3, 24), np.nan)}, "finite margins in originals"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    rng = np.random.default_rng(5)
    values: dict[str, Any] = {
        "references": bank(rng, 8), "originals": bank(rng, 4), "retrained": bank(rng, 4), "methods": {},
        "n_canaries": K,
    }  # fmt: skip
    with pytest.raises(BankError, match=message):
        judge_canaries(**{**values, **change})
