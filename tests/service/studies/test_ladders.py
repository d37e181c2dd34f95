"""The ladder that results recommend; by hand and against every other ladder."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from audit.policy import PRESETS, load_policy
from service.studies.ladders import SUFFIX, Measured, policy_of, recommend, upkeep
from service.studies.preparation import Facts

STANDARD = PRESETS["standard"]
MANY = Facts(n_subjects=2000, n_references=176, n_blocks=20, oracles={"remix": 0, "random_mask": 0})


def price_of(ladder: tuple[Measured, ...]) -> float:
    """The price of any ladder, from its last rung to its first."""
    price = 1.0
    for rung in reversed(ladder):
        price = rung.cost_share + rung.upkeep + rung.rejected_share * price
    return price


def test_the_recommended_ladder_is_the_cheapest_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        measured = [
            Measured(f"m{i}", float(rng.uniform(0.05, 1.2)), float(rng.choice([0.0, rng.uniform(), 1.0])))
            for i in range(4)
        ]
        ladders = [some for n in range(5) for some in permutations(measured, n)]
        found = recommend(measured)
        assert found.trainings == pytest.approx(min(map(price_of, ladders)))
        by_name = {each.method: each for each in measured}
        assert price_of(tuple(by_name[name] for name in found.ladder[:-1])) == pytest.approx(found.trainings)
        assert found.ladder[-1] == "retrain"


def test_a_method_that_is_always_rejected_or_dear_is_no_rung() -> None:
    assert recommend([Measured("a", 0.1, 1.0), Measured("b", 0.6, 0.5)]).ladder == ("retrain",)
    assert recommend([]).trainings == 1.0


def test_oracles_have_an_upkeep() -> None:
    """Twenty blocks of 128 are trained anew whenever a twentieth of the subjects is gone."""
    assert upkeep(STANDARD, MANY, 128) == pytest.approx(20 * 128 / 100)
    assert upkeep(STANDARD, Facts(n_subjects=10, n_references=1, n_blocks=10), 128) == 10 * 128
    assert recommend([Measured("oracle_matching", 0.07, 0.05, upkeep=25.6)]).ladder == ("retrain",)


def test_the_policy_keeps_its_bars_and_gets_a_name_once(tmp_path) -> None:
    policy = policy_of(policy_of(STANDARD, ("remix", "retrain")), ("retrain",))
    assert policy.name == f"standard{SUFFIX}"
    assert policy.ladder == ("retrain",)
    assert policy.retain_ratio_min == STANDARD.retain_ratio_min
    assert load_policy("standard").ladder == STANDARD.ladder


def test_spares_come_first_and_a_method_behind_them_is_reached_where_the_gate_rejects() -> None:
    found = recommend([Measured("remix", 0.2, 0.1), Measured("spare", 0.0, 0.05)])
    assert found.ladder == ("spare", "remix", "retrain")
    assert found.trainings == pytest.approx(0.05 * (0.2 + 0.1))
