"""Which runs are made twice, and what an auditor finds in the log."""

from __future__ import annotations

import hashlib
import hmac
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.proof.log import entry
from audit.proof.reruns import is_chosen, key_commitment, omissions

KEY, OTHER = b"k" * 32, b"o" * 32
CHOSEN = next(f"run-{i}" for i in range(100) if is_chosen(KEY, f"run-{i}", 0.1))
SPARED = next(f"run-{i}" for i in range(100) if not is_chosen(KEY, f"run-{i}", 0.1))


def is_chosen_naive(key: bytes, run_id: str, share: float) -> bool:
    """In exact fractions."""
    digits = hmac.new(key, run_id.encode(), hashlib.sha256).hexdigest()
    return Fraction(int(digits, 16), 2**256) < Fraction(share)


@given(st.binary(min_size=1, max_size=40), st.text(max_size=40), st.floats(0, 1))
def test_the_choice_is_the_naive_one(key, run_id, share):
    assert is_chosen(key, run_id, share) == is_chosen_naive(key, run_id, share)


def test_nobody_and_everybody():
    assert not any(is_chosen(KEY, str(i), 0.0) for i in range(1000))
    assert all(is_chosen(KEY, str(i), 1.0) for i in range(1000))


def test_the_share_is_kept():
    """10,000 runs: within 4 standard deviations, .012; fixed key, so no false positive."""
    share = sum(is_chosen(KEY, f"run-{i}", 0.1) for i in range(10_000)) / 10_000
    assert share == pytest.approx(0.1, abs=0.012)


def opened(run_id, *, key=KEY, share=0.1):
    return entry("policy", run_id=run_id, rerun_share=share, rerun_key_sha256=key_commitment(key))


def audited(run_id, verdict="PASSED", weights="a"):
    return entry("audit", run_id=run_id, verdict=verdict, weights=weights)


def again(run_id, weights="a", second="a"):
    return entry("rerun", run_id=run_id, weights=weights, again=second)


def ended(run_id):
    return entry("run", run_id=run_id, end="completed")


@pytest.mark.parametrize(
    ("between", "omitted"),
    [
        ([again(CHOSEN)], ()),
        ([], (CHOSEN,)),
        ([again(CHOSEN, second="b")], (CHOSEN,)),
        ([again(SPARED)], (CHOSEN,)),
        ([again(CHOSEN, weights="b", second="b")], (CHOSEN,)),
    ],
    ids=["made twice", "left out", "other weights", "another run", "another candidate"],
)
def test_an_omission_is_found(between, omitted):
    found = omissions([opened(CHOSEN), audited(CHOSEN), *between, ended(CHOSEN)], KEY)
    assert (found.chosen, found.omitted, found.n_runs) == ((CHOSEN,), omitted, 1)


def test_a_second_candidate_after_the_end_comes_too_late():
    entries = [opened(CHOSEN), audited(CHOSEN), ended(CHOSEN), again(CHOSEN)]
    assert omissions(entries, KEY).omitted == (CHOSEN,)


def test_runs_that_need_none():
    spared = [opened(SPARED), audited(SPARED), ended(SPARED)]
    nothing_learned = [opened(CHOSEN), ended(CHOSEN)]
    given_up = [opened(CHOSEN), audited(CHOSEN)]
    before_announcements = [entry("policy", run_id=CHOSEN), audited(CHOSEN), ended(CHOSEN)]
    for entries in (spared, nothing_learned, given_up, before_announcements):
        assert omissions(entries, KEY).omitted == ()


def test_another_key_is_said_to_be_another():
    found = omissions([opened(CHOSEN), audited(CHOSEN), ended(CHOSEN)], OTHER)
    assert (found.other_key, found.chosen) == ((CHOSEN,), ())


def test_the_share_is_the_one_logged():
    assert omissions([opened(SPARED, share=1.0), audited(SPARED), ended(SPARED)], KEY).omitted == (SPARED,)
