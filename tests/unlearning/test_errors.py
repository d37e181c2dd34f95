"""The error tree is the one its docstring draws."""

import inspect

import pytest

from unlearning import errors


def test_every_error_of_the_module_is_drawn():
    kinds = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.UnlearningError)
    }
    assert "FacesError" in kinds
    for name in kinds:
        assert name in (errors.__doc__ or "")


def test_a_row_is_named_by_its_line():
    error = errors.FacesError("Expected a label.", row=17)
    assert error.row == 17
    assert str(error) == "metadata.csv, line 17: Expected a label."
    assert errors.FacesError("Expected a folder.").row is None
    with pytest.raises(errors.UnlearningError):
        raise error
