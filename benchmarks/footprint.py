"""Memory and start of a service with two serving processes, by this build and by a former one.

    python benchmarks/footprint.py [--quick] [--json FILE] [--rounds N]

A ResNet-18 of random weights for images of 64 × 64, PyTorch's backend and OpenVINO's, both builds in turn. The former
build is an archive of an earlier commit (`benchmarks.loads.streams.FORMER`), run by the same Python with the same
libraries. Each has homes of its own, made by its own code. Measured are

* memory of the whole service at rest, its parent process included: after a hundred predictions and two seconds without
  any (`benchmarks.loads.pages`, with the figure that does not depend on what else runs on the machine);
* seconds from `expunge serve` to the first answer of 200, and the processor seconds that the service took until then,
  which tell more where other programs run beside it;
* the most memory during a swap to a second version, beside memory at rest: anonymous memory, looked at fifty times a
  second, since a swap adds no file.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a script, this file's own folder comes first on the path and its audit.py would hide the package `audit`.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "benchmarks")]

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sqlite3  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from contextlib import closing  # noqa: E402
from statistics import median  # noqa: E402

import httpx  # noqa: E402

from benchmarks.loads.figures import machine, verdict  # noqa: E402
from benchmarks.loads.homes import image_files  # noqa: E402
from benchmarks.loads.pages import Peak, pages, tree  # noqa: E402
from benchmarks.loads.processor import Account  # noqa: E402
from benchmarks.loads.streams import FORMER, former_code  # noqa: E402
from service.launch import free_ports  # noqa: E402

SHAPE = (64, 64, 3)
BACKENDS = ("torch", "openvino")
N_PROCESSES = 2
N_PREDICTIONS = 100
REST_SECONDS = 2.0
PATIENCE_SECONDS = 300.0
MOST_OF_FORMER = {"torch": 0.7, "openvino": 0.35}
MOST_TIME_OF_FORMER = 0.5
MOST_AT_SWAP = 1.3
MB = 1e6

# Both run in a build's own folder, by its own code.
MAKE = """
import json, sys
from pathlib import Path
from benchmarks.loads import homes
from benchmarks.loads.homes import make_home, settings_of
image_files = getattr(homes, "image_files", None) or homes.pictures  # the former build's name
home, backend, shape = Path(sys.argv[1]), sys.argv[2], tuple(json.loads(sys.argv[3]))
print(json.dumps(make_home(settings_of(home, backend=backend), shape, image_files(shape, 32), range(2))))
"""
SWAP = """
import sys
from service.context import Context
from service.settings import Settings
try:  # the former build's first: it lacks the other, and would get this checkout's where that is installed for editing
    from service.deployment import deploy
except ModuleNotFoundError:
    from service.models.deployment import deploy
deploy(Context.open(Settings()), sys.argv[1])
"""


class Build:
    """A build's home for one backend, and what its service takes."""

    def __init__(self, name: str, code: Path, backend: str, folder: Path) -> None:
        self.name, self.backend, self._code = name, backend, code
        self._home = folder / f"{name}-{backend}"
        self._log = folder / f"{name}-{backend}.log"
        others = {name: value for name, value in os.environ.items() if not name.upper().startswith("EXPUNGE_")}
        self._env = {**others, "PYTHONPATH": str(code), "BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1"}
        made = self._python(MAKE, str(self._home), backend, json.dumps(SHAPE))
        self._digests, self._key = json.loads(made.splitlines()[-1])
        self._env |= {
            "EXPUNGE_HOME": str(self._home), "EXPUNGE_BACKEND": backend, "EXPUNGE_LOG_FORMAT": "json",
            "EXPUNGE_API_WORKERS": str(N_PROCESSES),
        }  # fmt: skip
        self._active = 0

    def measure(self) -> dict[str, float]:
        """One start, rest and swap."""
        port, _ = free_ports(2)
        account, image = Account(), image_files(SHAPE, 1)[0]
        env = {**self._env, "EXPUNGE_PORT": str(port)}
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "image/jpeg"}
        began = time.monotonic()
        process = account.start([sys.executable, "-m", "service.cli", "serve"], cwd=self._code, env=env, log=self._log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
                while not self._answers(client, image):
                    if not account.alive() or time.monotonic() - began > PATIENCE_SECONDS:
                        raise RuntimeError(f"Expected the service to answer; its log is {self._log}.")
                    time.sleep(0.05)
                seconds, processor = time.monotonic() - began, account.seconds()
                pids = self._all_ready(process.pid)
                for _ in range(N_PREDICTIONS):
                    self._answers(client, image)
            time.sleep(REST_SECONDS)
            resting = pages(pids)
            with Peak(pids) as peak:
                self._active = 1 - self._active
                self._python(SWAP, self._digests[self._active])
                time.sleep(REST_SECONDS)
            after = pages(pids)
        finally:
            account.stop()
        return {
            "seconds_to_first_answer": seconds,
            "processor_seconds_to_first_answer": processor,
            "resting_bytes": resting.alone,
            "resting_pss_bytes": resting.pss,
            "anonymous_bytes": resting.anonymous,
            "peak_bytes": resting.alone + max(0, peak.anonymous - resting.anonymous),
            "after_swap_bytes": after.alone,
        }

    def _all_ready(self, pid: int) -> list[int]:
        """All processes, once each serving one has said in the database that it answers with a model."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            pids = tree(pid)
            with closing(sqlite3.connect(self._home / "expunge.db")) as database:
                rows = database.execute("SELECT pid FROM serving_workers WHERE acknowledged_generation >= 1")
                if len({row[0] for row in rows} & set(pids)) == N_PROCESSES:
                    return pids
            if time.monotonic() > deadline:
                raise RuntimeError(f"Expected {N_PROCESSES} serving processes to be ready; their log is {self._log}.")
            time.sleep(0.1)

    @staticmethod
    def _answers(client: httpx.Client, image: bytes) -> bool:
        try:
            return client.post("/v1/predictions", content=image).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _python(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=self._code, env=self._env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"Expected a helper of {self.name} to end well: {done.stderr}")
        return done.stdout


def tell(found: dict[str, list[dict[str, float]]], n_rounds: int) -> dict[str, float]:
    """The tables; gives what the targets are about."""
    mid = {name: {key: median(one[key] for one in runs) for key in runs[0]} for name, runs in found.items()}
    print(f"{machine()}\nformer: {FORMER[:7]}; medians of {n_rounds} starts\n")
    print(
        f"{'':20s}{'at rest MB':>12s}{'anonymous':>11s}{'PSS':>8s}{'first answer s':>16s}{'processor s':>13s}"
        f"{'swap, most MB':>15s}{'of rest':>9s}{'after':>8s}"
    )
    for name, one in mid.items():
        at_rest, peak = one["resting_bytes"] / MB, one["peak_bytes"] / MB
        print(
            f"{name:20s}{at_rest:12.0f}{one['anonymous_bytes'] / MB:11.0f}{one['resting_pss_bytes'] / MB:8.0f}"
            f"{one['seconds_to_first_answer']:16.2f}{one['processor_seconds_to_first_answer']:13.2f}{peak:15.0f}"
            f"{peak / at_rest:9.2f}{one['after_swap_bytes'] / MB:8.0f}"
        )
    print()
    judged = {}
    for backend, most in MOST_OF_FORMER.items():
        now, then = mid[f"present {backend}"], mid[f"former {backend}"]
        for what, key, target in (
            ("memory at rest", "resting_bytes", most),
            ("time to the first answer", "seconds_to_first_answer", MOST_TIME_OF_FORMER),
            ("processor time to it", "processor_seconds_to_first_answer", MOST_TIME_OF_FORMER),
        ):
            judged[f"{backend} {what}"] = value = now[key] / then[key]
            print(f"{backend}, {what}, of the former: {value:.2f}; {verdict(value, most=target)}")
        judged[f"{backend} swap"] = value = now["peak_bytes"] / now["resting_bytes"]
        print(f"{backend}, a swap's peak, of memory at rest: {value:.2f}; {verdict(value, most=MOST_AT_SWAP)}")
    across = mid["present openvino"]["resting_bytes"] / mid["former torch"]["resting_bytes"]
    print(f"OpenVINO now, of PyTorch formerly, memory at rest: {across:.2f}")
    return judged


def main() -> None:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="one start of each")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each, in turn")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    n_rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        codes = {"former": former_code(folder), "present": ROOT}
        builds = {
            f"{name} {backend}": Build(name, code, backend, folder)
            for backend in BACKENDS
            for name, code in codes.items()
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in builds}
        for number in range(n_rounds):
            for name, build in builds.items():
                found[name].append(one := build.measure())
                told = ", ".join(f"{key} {value / MB if 'bytes' in key else value:.1f}" for key, value in one.items())
                print(f"{time.strftime('%H:%M:%S')} {number + 1} of {n_rounds}, {name}: {told}", flush=True)
        judged = tell(found, n_rounds)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "runs": found, "ratios": judged}, indent=1) + "\n")


if __name__ == "__main__":
    main()
