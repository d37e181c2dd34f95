"""Rows in columns: the same as a tuple of rows, and the same verdict on doubles as a dictionary of all of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unlearning.errors import FacesError
from unlearning.faces import dataset, rows
from unlearning.faces.rows import Row, Rows, repeated

ROWS = st.lists(
    st.builds(
        Row,
        file_name=st.text(st.sampled_from("aß€.png/"), max_size=3),
        user_id=st.sampled_from("abc"),
        label=st.sampled_from(["0", "1"]),
        split=st.sampled_from(dataset.SPLITS),
        line=st.integers(0, 1 << 20),
    ),
    max_size=12,
)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(rows, "_PIECE", 3)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.slices(12))
def test_rows_are_a_sequence_of_what_they_were_made_of(small_pieces, given_rows, part):
    held = Rows(iter(given_rows))
    assert len(held) == len(given_rows)
    assert held == tuple(given_rows) == tuple(held)
    assert [row.line for row in held] == [row.line for row in given_rows]
    assert held[part] == tuple(given_rows[part])
    for index in range(-len(held), len(held)):
        assert held[index] == given_rows[index]
    with pytest.raises(IndexError):
        held[len(held)]
    assert held != [*given_rows, Row("x.png", "a", "0", "train")]
    for column, field in ((held.user_ids, "user_id"), (held.labels, "label"), (held.splits, "split")):
        fields = [getattr(row, field) for row in given_rows]
        assert column.values == tuple(dict.fromkeys(fields))
        assert [column.values[position] for position in column.positions] == fields
        assert [column.first(value) for value in column.values] == [fields.index(value) for value in column.values]
        names = sorted(column.values)
        assert column.positions_in(names, np.int32).tolist() == [names.index(value) for value in fields]


@given(st.lists(st.integers(-3, 3)))
def test_keys_that_stand_twice(keys):
    counts = Counter(keys)
    assert repeated(np.array(keys, dtype=np.int64)).tolist() == [counts[key] > 1 for key in keys]


def complaint(table):
    """What is wrong in a table first, said by dictionaries of all rows; None where nothing is."""
    names, people = {}, {}
    for row in table:
        if row.file_name in names:
            return f"This file_name is already in line {names[row.file_name]}; ", row.line
        names[row.file_name] = row.line
        first = people.setdefault(row.user_id, row)
        if first.split != row.split:
            return f"in split {row.split} here and in {first.split} in line {first.line}; ", row.line
    return None


@pytest.mark.parametrize("n_hashes", [1, 2, 1 << 61])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_doubles_are_those_a_dictionary_finds_even_where_hashes_collide(monkeypatch, n_hashes, given_rows):
    monkeypatch.setattr(Rows, "name_hashes", lambda held: np.array([hash(r.file_name) % n_hashes for r in held], int))
    table = [*given_rows, Row("z.png", "z", "0", "train", line=99)]  # somebody to train on
    expected = complaint(table)
    if expected is None:
        dataset._check_table(Rows(table), classes_known=True)
        return
    with pytest.raises(FacesError) as caught:
        dataset._check_table(Rows(table), classes_known=True)
    assert expected[0] in str(caught.value)
    assert caught.value.row == expected[1]
