"""`make fuzz`: a hundred thousand damaged images through the decoder, in processes that may die of them.

Each process draws its inputs from (seed, number), so that one that crashed is found again: `--chunk NUMBER --n 1`.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz.mutation import corpus, large_corpus, mutated
from tests.fuzz.trial import attempt, held_bytes

CHUNK = 2_000
HANG_SECONDS = 300  # of processor time, for a chunk


def chunk(seed: int, first: int, n: int) -> dict[str, Any]:
    """Try some inputs in this process."""
    resource.setrlimit(resource.RLIMIT_CPU, (HANG_SECONDS, HANG_SECONDS))
    files = corpus()
    held = held_bytes()
    found: dict[str, Any] = {"n": 0, "n_decoded": 0, "slowest_seconds": 0.0, "most_bytes": 0, "complaints": []}
    for number in range(first, first + n):
        trial = attempt(mutated(random.Random(f"{seed} {number}"), files), held=held)
        _count(found, trial, f"input {number}")
    return found


def large(seed: int) -> dict[str, Any]:
    """Images as large as allowed and larger, whole and damaged; each in a process, which counts its own memory."""
    found: dict[str, Any] = {"n": 0, "n_decoded": 0, "slowest_seconds": 0.0, "most_bytes": 0, "complaints": []}
    resource.setrlimit(resource.RLIMIT_CPU, (HANG_SECONDS, HANG_SECONDS))
    files = large_corpus()
    for number in range(2 * len(files)):
        pid = os.fork()
        if pid == 0:
            content = files[number // 2]
            if number % 2:
                content = mutated(random.Random(f"{seed} large {number}"), [content])
            trial = attempt(content)
            print(json.dumps({**vars(trial), "number": number}), flush=True)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            found["complaints"].append(f"large input {number}: the process ended with status {status}")
    return found


def _count(found: dict[str, Any], trial: Any, name: str) -> None:
    found["n"] += 1
    found["n_decoded"] += trial.decoded
    found["slowest_seconds"] = max(found["slowest_seconds"], trial.seconds)
    found["most_bytes"] = max(found["most_bytes"], trial.grown_bytes)
    if trial.complaint:
        found["complaints"].append(f"{name} {trial.complaint}")


def _run(arguments: list[str]) -> tuple[list[dict[str, Any]], str | None]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments], capture_output=True, text=True, check=False,
        timeout=10 * HANG_SECONDS,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return (
        answers,
        f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-500:]}" if done.returncode else None,
    )


def main() -> int:
    """Run all, or one chunk for the process above; 1 if anything misbehaved."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--large", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    faulthandler.enable()
    if options.large:
        return int(bool(large(options.seed)["complaints"]))
    if options.chunk is not None:
        print(json.dumps(chunk(options.seed, options.chunk, options.n)))
        return 0
    total: dict[str, Any] = {"n": 0, "n_decoded": 0, "slowest_seconds": 0.0, "most_bytes": 0, "complaints": []}
    began = time.monotonic()
    for first in range(0, options.n, CHUNK):
        n = min(CHUNK, options.n - first)
        answers, complaint = _run(["--seed", str(options.seed), "--chunk", str(first), "--n", str(n)])
        total["complaints"] += [complaint] if complaint else []
        for answer in answers:
            total["n"] += answer["n"]
            total["n_decoded"] += answer["n_decoded"]
            total["slowest_seconds"] = max(total["slowest_seconds"], answer["slowest_seconds"])
            total["most_bytes"] = max(total["most_bytes"], answer["most_bytes"])
            total["complaints"] += answer["complaints"]
    answers, complaint = _run(["--seed", str(options.seed), "--large"])
    total["complaints"] += [complaint] if complaint else []
    for answer in answers:
        name = f"large input {answer.pop('number')}"
        total["n_large"] = total.get("n_large", 0) + 1
        total["slowest_large_seconds"] = max(total.get("slowest_large_seconds", 0.0), answer["seconds"])
        total["most_large_bytes"] = max(total.get("most_large_bytes", 0), answer["grown_bytes"])
        total["complaints"] += [f"{name} {answer['complaint']}"] if answer["complaint"] else []
    total["seconds"], total["seed"] = time.monotonic() - began, options.seed
    print(json.dumps(total, indent=1))
    if options.json:
        options.json.write_text(json.dumps(total, indent=1) + "\n")
    return int(bool(total["complaints"]))


if __name__ == "__main__":
    sys.exit(main())
