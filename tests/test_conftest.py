"""The rule about skips, seen from a test run of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[1]
TESTS = {
    "conftest.py": "from tests.conftest import pytest_make_collect_report, pytest_runtest_makereport",
    "test_whole.py": "import pytest\npytest.importorskip('a_package_that_is_not_there')",
    "test_single.py": "import pytest\ndef test_skips():\n    pytest.skip('Needs a program.')",
    "test_gpu.py": "import pytest\n@pytest.mark.gpu\n@pytest.mark.skipif(True, reason='no GPU')\ndef test_skips(): ...",
    "test_expected.py": "import pytest\n@pytest.mark.xfail\ndef test_fails():\n    assert False",
}


@pytest.mark.parametrize(
    ("ci", "ended"), [("", "3 skipped, 1 xfailed"), ("true", "1 failed, 1 skipped, 1 xfailed, 1 error")]
)
def test_in_ci_only_what_needs_a_gpu_may_skip(tmp_path, ci, ended):
    for name, text in TESTS.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider"]
    command += ["-o", "markers=gpu", "--continue-on-collection-errors", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert f"\n{ended} in " in done.stdout, done.stdout
    if ci:
        assert "Needs a program." in done.stdout
        assert "nothing skips for want of anything but a GPU" in done.stdout
