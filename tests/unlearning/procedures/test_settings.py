import dataclasses

import pytest

from unlearning.errors import MethodError
from unlearning.procedures.settings import DescentSettings, Settings, bound_to, choice, ranged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(DescentSettings):
    parts: tuple[float, ...] = ranged((0.5, 1.0), 0.0, 1.0)
    where: str = choice("all", "all", "stem")
    half: bool = True


def test_sentence_names_value_and_range():
    with pytest.raises(MethodError, match=r"Example: expected momentum=1\.5 in \[0\.0, 0\.9999\]\."):
        Example(momentum=1.5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 1}, r"expected batch_size=1 in \[2, 65536\]"),
        ({"batch_size": 16.0}, "expected batch_size to be a whole number, got 16.0"),
        ({"learning_rate": float("nan")}, "expected learning_rate=nan"),
        ({"learning_rate": "fast"}, "expected learning_rate to be a number, got 'fast'"),
        ({"where": "nowhere"}, r"expected where in \('all', 'stem'\), got 'nowhere'"),
        ({"half": 1}, "expected half to be true or false, got 1"),
        ({"parts": ()}, "expected parts as one or more numbers"),
        ({"parts": 0.5}, "expected parts as one or more numbers, got 0.5"),
        ({"parts": (0.5, 2.0)}, r"expected parts=2\.0 in \[0\.0, 1\.0\]"),
    ],
)
def test_wrong_values_are_refused(options, sentence):
    with pytest.raises(MethodError, match=sentence):
        Example(**options)


def test_plain_values_and_back():
    settings = Example(epochs=3, parts=(0.25,), half=False)
    assert settings.to_dict()["parts"] == [0.25]
    assert "recipe" not in settings.to_dict()
    assert Example.from_dict(settings.to_dict()) == settings


def test_unknown_names_are_refused():
    with pytest.raises(MethodError, match=r"Example has no \['epoch'\]; expected"):
        Example.from_dict({"epoch": 3})


def test_recipe_is_bound_without_change_to_the_rest(recipe):
    plain = Example(epochs=7)
    assert bound_to(plain, recipe) == Example(epochs=7, recipe=recipe)
    assert plain.recipe is None
    assert Settings().to_dict() == {}
