"""A parent process for the trials' tests: it runs trials in two children until it is killed.

Run as a program with a pickled spec and its settings as JSON; prints a line of JSON for each outcome.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import psutil

from service.settings import Settings
from service.training.jobs import run_trials


def main(spec: Path, settings: str) -> None:
    outcomes = run_trials(pickle.loads(spec.read_bytes()), range(10_000), Settings.model_validate_json(settings))  # noqa: S301
    for outcome in outcomes:
        children = {child.pid: " ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)}
        line = {"seed": outcome.seed, "margins": outcome.margins.tolist(), "children": children}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
