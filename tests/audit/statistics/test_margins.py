import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from audit.errors import BankError, NotANumberError
from audit.statistics.margins import as_bank, as_banks, as_row, margins

LOGITS = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6), elements=st.floats(-9, 9)
)


@given(LOGITS)
def test_it_is_the_log_odds_of_the_true_class(logits):
    labels = np.arange(len(logits)) % logits.shape[1]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p = probabilities[np.arange(len(labels)), labels]
    rest = np.array([sum(q for j, q in enumerate(row) if j != y) for row, y in zip(probabilities, labels, strict=True)])
    assert margins(logits, labels) == pytest.approx(np.log(p) - np.log(rest), abs=1e-9)


def test_it_does_not_saturate_where_probabilities_round_to_one():
    assert margins([[900.0, 0.0], [0.0, 900.0]], [0, 0]) == pytest.approx([900.0, -900.0])


def test_two_classes_give_the_difference_of_logits():
    assert margins(np.float32([[3.0, 1.5]]), [1]) == pytest.approx([-1.5])


def test_infinite_logits_give_infinite_margins():
    assert margins([[np.inf, 0.0], [0.0, np.inf], [-np.inf, 0.0]], [0, 0, 0]).tolist() == [np.inf, -np.inf, -np.inf]


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        ([1.0, 2.0], [0], "shape"),
        ([[1.0]], [0], "n_classes >= 2"),
        ([[1.0, 2.0]], [2], r"\[0, 1\]"),
        ([[1.0, 2.0]], [-1], r"\[0, 1\]"),
        ([[1.0, 2.0]], [0.0], "integer"),
        ([[1.0, 2.0]], [0, 1], "one integer label"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(logits, labels, words):
    with pytest.raises(BankError, match=words):
        margins(logits, labels)


@pytest.mark.parametrize("row", [[np.nan, 1.0], [np.inf, np.inf], [-np.inf, -np.inf]])
def test_a_margin_that_is_no_number_names_the_example(row):
    with pytest.raises(NotANumberError, match="example 1") as error:
        margins([[0.0, 1.0], row], [0, 0])
    assert error.value.example == 1


def test_a_nan_in_a_bank_names_model_and_example():
    bank = np.zeros((4, 3))
    bank[2, 1] = np.nan
    with pytest.raises(NotANumberError, match="model 2 on example 1 in unlearned") as error:
        as_banks(bank, np.zeros((4, 3)))
    assert (error.value.model, error.value.example) == (2, 1)
    from_a_child = copy.copy(error.value)  # by the same way as pickle
    assert str(from_a_child) == str(error.value)
    assert (from_a_child.model, from_a_child.example) == (2, 1)


def test_banks_of_other_shapes_are_refused():
    with pytest.raises(BankError, match="same examples"):
        as_banks(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(BankError, match="n_models"):
        as_bank("retrained", np.zeros(3))
    with pytest.raises(BankError, match="at least 2 models"):
        as_bank("retrained", np.zeros((1, 3)))
    with pytest.raises(BankError, match=r"\(3,\)"):
        as_row("deployed", np.zeros(4), 3)


def test_everything_is_computed_in_float64_whatever_comes():
    # In half precision 2048 − 0.5 rounds to 2048, and a float32 bank would carry its rounding into every rank.
    found = margins(np.float16([[2048.0, 0.5]]), [0])
    assert (found.dtype, found.tolist()) == (np.float64, [2047.5])
    for checked in (as_bank("retrained", np.float32([[1.0], [2.0]])), as_row("candidate", np.float32([1.0]), 1)):
        assert checked.dtype == np.float64


def test_the_smallest_banks_and_rows_are_taken_as_they_are():
    assert as_bank("retrained", [[1.0], [2.0]]).tolist() == [[1.0], [2.0]]  # two models, one example
    assert as_bank("candidates", [[1.0, 2.0]], min_models=1).tolist() == [[1.0, 2.0]]
    assert as_row("candidate", [1.0, 2.0], 2).tolist() == [1.0, 2.0]
    with pytest.raises(BankError, match="examples >= 1"):
        as_bank("retrained", np.zeros((2, 0)))


def test_a_row_that_is_no_number_is_refused():
    with pytest.raises(NotANumberError, match="example 1 in candidate is not a number"):
        as_row("candidate", [1.0, np.nan], 2)


@pytest.mark.parametrize("bad", ["unlearned", "retrained"])
def test_the_bank_that_is_broken_is_named(bad):
    banks = {"unlearned": np.zeros((2, 1)), "retrained": np.zeros((2, 1))}
    banks[bad][0, 0] = np.nan
    with pytest.raises(NotANumberError, match=f"in {bad} is not"):
        as_banks(**banks)
