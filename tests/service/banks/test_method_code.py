"""The digest of a method's code."""

from __future__ import annotations

import pytest

from service.banks.method_code import method_code_version
from unlearning.errors import MethodError


def test_it_depends_on_the_method_s_own_code_only() -> None:
    versions = {name: method_code_version(name) for name in ("finetune", "seif", "scrub", "scrub_r")}
    assert versions["scrub"] == versions["scrub_r"]
    assert len(set(versions.values())) == 3


def test_an_unknown_method_has_no_code() -> None:
    with pytest.raises(MethodError, match="Unknown method"):
        method_code_version("hope")
