from __future__ import annotations

import pytest

from docs.generate_settings import settings_table
from service.errors import StartupError
from service.serving.speedups import SPEEDUPS, is_on
from service.settings import Settings


def test_all_none_or_some_are_on() -> None:
    for name in SPEEDUPS:
        assert is_on(name, Settings())
        assert not is_on(name, Settings(speedups="none"))
        assert is_on(name, Settings(speedups=f"{SPEEDUPS[0]}, {name}"))
        assert not is_on(name, Settings(speedups=",".join(set(SPEEDUPS) - {name}) or "none"))


def test_a_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(StartupError, match="got 'packed'"):
        is_on(SPEEDUPS[0], Settings(speedups=f"packed,{SPEEDUPS[0]}"))


def test_the_setting_documents_every_name() -> None:
    (row,) = [line for line in settings_table().splitlines() if "EXPUNGE_SPEEDUPS" in line]
    assert all(name in row for name in SPEEDUPS)
