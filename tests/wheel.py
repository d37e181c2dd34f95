"""The wheel as strangers install it: built from this tree, in a clean environment that borrows the packages here."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path) -> Path:
    """The folder, with the source distribution and the wheel that was built from it."""
    done = run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def install(built: Path, folder: Path) -> Path:
    """`expunge` of a clean environment with the wheel, which sees the packages installed here but not this tree."""
    venv.create(folder, with_pip=False, symlinks=True)
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    done = run(*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    site = next(folder.glob("lib/python*/site-packages"))
    borrowed = [
        path for path in sys.path if Path(path).name == "site-packages"
    ]  # several, where they are borrowed here
    (site / "packages-of-the-tests.pth").write_text("\n".join(borrowed) + "\n")
    return folder / "bin" / "expunge"


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder, without this tree on its path; gives what it wrote."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=280, check=False)
