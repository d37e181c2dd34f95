"""The page on our parts and the scripts behind it name each other."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = sorted((ROOT / "findings").iterdir())


def test_every_finding_has_its_row_and_every_row_its_finding() -> None:
    rows = [line for line in (ROOT / "docs" / "parts.md").read_text().splitlines() if line.startswith("| ")]
    named = [match[1] for line in rows if (match := re.search(r"\| `([a-z0-9-]+)` \|$", line))]
    assert sorted(named) == [path.stem for path in FINDINGS]
    headings = sum(line.startswith("| part |") for line in rows)
    assert len(rows) == len(named) + headings


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_a_finding_is_a_script_of_pinned_packages(path: Path) -> None:
    text = path.read_text()
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", path], check=False, timeout=PATIENCE_SECONDS).returncode == 0
    packages = re.search(r"-m pip install [^\n]*\\\n(.*) \|\| exit 2\n", text)
    assert packages, "Expected one line of packages after pip install"
    assert all("==" in package for package in packages[1].split())
    assert not re.search(r"https?://(?!127\.0\.0\.1|\{\})", text)
    assert len(text.splitlines()) < 90


def test_the_versions_are_those_that_expunge_is_tested_with() -> None:
    constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().split())
    for path in FINDINGS:
        for name, version in re.findall(r"([a-z0-9-]+)(?:\[\w+\])?==([\w.]+)", path.read_text().lower()):
            known = constraints.get(name, constraints.get(name.replace("-", "_"), version))
            assert version == known, (path.stem, name)


def test_the_findings_go_on_after_a_change_and_resume_with_what_is_left(tmp_path: Path) -> None:
    scripts = []
    for name, line in (("a", "echo now other; exit 1"), ("b", "exit 0"), ("c", "exit 2"), ("d", "exit 0")):
        scripts.append(tmp_path / f"{name}.sh")
        scripts[-1].write_text(f"#!/bin/sh\necho {name} >>{tmp_path}/ran\n{line}\n")
        scripts[-1].chmod(0o755)

    def found(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "-s", "findings", f"FINDINGS={' '.join(map(str, scripts))}", f"FOUND={tmp_path}/found", *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )

    first = found()
    assert first.returncode != 0
    assert "CHANGED        " + str(scripts[0]) + "\n    now other\n" in first.stdout
    assert "not installed  " + str(scripts[2]) in first.stdout
    assert first.stdout.endswith("2 as found, 1 changed, 1 not installed\n")
    for path, line in ((scripts[0], "exit 0"), (scripts[2], "exit 0"), (scripts[3], "exit 0  # of another version")):
        path.write_text(f"#!/bin/sh\necho {path.stem} >>{tmp_path}/ran\n{line}\n")
    again = found("RESUME=1")
    assert again.returncode == 0
    assert again.stdout.endswith("4 as found, 0 changed, 0 not installed\n")
    assert (tmp_path / "ran").read_text().split() == ["a", "b", "c", "d", "a", "c", "d"]
