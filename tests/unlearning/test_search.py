"""Search spaces: every method has one, and every corner of it is a setting the method takes."""

import itertools

import pytest

from unlearning.errors import MethodError
from unlearning.methods import METHODS
from unlearning.search import SPACES, find_space


def test_every_approximate_method_can_be_tuned():
    assert SPACES.keys() == {name for name, method in METHODS.items() if not method.exact}


@pytest.mark.parametrize("name", SPACES)
def test_every_corner_is_taken_by_the_method(name):
    space = SPACES[name]
    assert space.guess.keys() == space.ranges.keys()
    assert all(
        space.ranges[setting].low <= value <= space.ranges[setting].high for setting, value in space.guess.items()
    )
    ends = [((setting, r.low), (setting, r.high)) for setting, r in space.ranges.items()]
    for corner in itertools.product(*ends):
        settings = space.settings(name, dict(corner))
        assert type(settings) is METHODS[name].settings
        assert settings.recipe is None


def test_whole_numbers_and_tuples_are_made_of_what_is_drawn():
    cf_k = SPACES["cf_k"].settings("cf_k", {**SPACES["cf_k"].guess, "k": 3.0})
    assert cf_k.to_dict()["k"] == 3
    sun = SPACES["sun"].settings("sun", {**SPACES["sun"].guess, "noisy_rates": 0.25})
    assert sun.to_dict()["noisy_rates"] == [0.25]


def test_nothing_to_tune():
    with pytest.raises(MethodError, match="retrain has nothing to tune"):
        find_space("retrain")
    with pytest.raises(MethodError, match="Unknown method 'hope'"):
        find_space("hope")
