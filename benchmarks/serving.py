"""What serving costs beside the model alone, and beside other servers: one table of ratios from one run.

    python benchmarks/serving.py [--quick] [--json FILE] [--size 64x64x3|112x92x1] [--only NAME]...

A ResNet-18 in bfloat16 (where the hardware has it), the same weights for all. Every contender is started here, with two
processes of one thread each, and gets the same JPEG faces over loopback HTTP from wrk: 1, 16 and 64 connections, each
with one request under way at all times. They take turns in rounds, in another order each round, so that what else the
machine does falls on all; whose turn it is not is frozen (SIGSTOP), for some spin while they wait. Ratios are of the
same round; printed are their median and the interval of the middle 90 % of medians of resampled rounds.

* *ours*: the service as `expunge serve` starts it in the container: key, JSON log lines, metrics, limits, swaps.
* *ours, OpenVINO*: the same with EXPUNGE_BACKEND=openvino, if the extra `openvino` is installed; its limit beside it.
* *BentoML, tutorial*: an image as the method's parameter, no batching; two workers.
* *LitServe*: batches of up to 32, its quicker transport, two workers and two HTTP servers.
* *FastAPI, a forward a request*: uvicorn's two workers, FastAPI's threads, uvloop and httptools.
* *FastAPI, our batching*: the same with `batching.py` and `engine.py` of `service/serving`, and nothing else of ours.
* *the limit*: two processes with the model in a loop, as torch computes it, in batches of 32, with decoding the JPEG
  files; below it the same without decoding, and in batches of 1. No server, no HTTP, no load generator beside it.
* *the limit of our engine*: the same loop with the model as `service/inference/engine.py` prepares it.

A burst in which others took more than 8 % of all cores is repeated up to three times, and the least disturbed one
counts; the most that others took in a counted burst is in the table. Ratios of processor time stand beside those of
throughput: they stay true when others use the machine.

wrk takes a part of the two cores from every server and none from the limit; its share is in the table. Needs wrk
(Debian's package) and the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

# The project's root instead of this folder: `audit.py` here would hide the package `audit`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402

from benchmarks.contenders.model import Shape, has_openvino  # noqa: E402
from benchmarks.contenders.running import Contender, Limit, Running, ours, started  # noqa: E402
from benchmarks.loads.figures import Others, machine, ratio, verdict  # noqa: E402
from benchmarks.loads.homes import image_files, make_home, serving_pids, settings_of  # noqa: E402
from benchmarks.loads.wrk import Burst, Call, burst, need_wrk, write_script  # noqa: E402
from service.context import Context  # noqa: E402
from service.launch import free_ports  # noqa: E402
from service.models import registry  # noqa: E402

CONNECTIONS = (1, 16, 64)
N_IMAGES = 48
LIMITS: dict[str, dict[str, Any]] = {
    "limit": {"batch": 32, "decode": True, "engine": ""},
    "limit, decoded before": {"batch": 32, "decode": False, "engine": ""},
    "limit, one at a time": {"batch": 1, "decode": True, "engine": ""},
    "limit of our engine": {"batch": 32, "decode": True, "engine": "torch"},
    "limit of our engine, one at a time": {"batch": 1, "decode": True, "engine": "torch"},
}
if has_openvino():
    LIMITS["limit of OpenVINO"] = {"batch": 32, "decode": True, "engine": "openvino"}
MOST_OF_OTHERS, MOST_REPEATS = 0.08, 3  # share of all cores; the kernel's own work for the sockets is among it
BOUNDARY = "a-boundary-that-no-image-has"


@dataclass(frozen=True)
class Plan:
    """How long to look."""

    rounds: int
    seconds: int


QUICK = Plan(rounds=2, seconds=1)
FULL = Plan(rounds=4, seconds=2)


def form(file: bytes) -> bytes:
    """A form with one JPEG file named `image`."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="face.jpg"\r\n'
    return head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + file + f"\r\n--{BOUNDARY}--\r\n".encode()


def contenders(
    folder: Path, shape: Shape, files: tuple[bytes, ...], stack: ExitStack
) -> tuple[dict[str, Contender], dict[str, str]]:
    """All that can be started here, and the environment that tells them the weights; home and weights are made."""
    settings = settings_of(folder / "home")
    digests, key = make_home(settings, shape, files, range(1))
    context = Context.open(settings)
    stack.callback(context.engine.dispose)
    given = {
        "CONTENDER_WEIGHTS": str(registry.path(settings, digests[0]).resolve()),
        "CONTENDER_SHAPE": "x".join(map(str, shape)),
    }
    raw, forms = {"Content-Type": "image/jpeg"}, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    form_bodies = tuple(form(file) for file in files)
    ports = free_ports(4)

    def url(port: int, path: str) -> str:
        return f"http://127.0.0.1:{port}{path}"

    def uvicorn(module: str, port: int) -> list[str]:
        name = f"benchmarks.contenders.{module}:app"
        options = ["--workers", "2", "--port", str(port), "--no-access-log", "--log-level", "warning"]
        return [sys.executable, "-m", "uvicorn", name, *options]

    bento = [sys.executable, "-m", "bentoml", "serve", "benchmarks.contenders.bento_tutorial:Faces", "--port"]
    bento_home = {"BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    lit = [sys.executable, "-m", "benchmarks.contenders.litserve_batching", str(ports[1])]
    found = {
        "ours": ours(
            "ours",
            settings,
            Call(url(settings.port, "/v1/predictions"), {**raw, "Authorization": f"Bearer {key}"}, files),
            lambda: len(serving_pids(context)) == settings.api_workers,
        ),
        "bentoml": Contender(
            "BentoML, tutorial",
            [*bento, str(ports[0])],
            {**given, **bento_home},
            "bentoml",
            Call(url(ports[0], "/classify"), forms, form_bodies),
        ),
        "litserve": Contender(
            "LitServe, batching", lit, given, None, Call(url(ports[1], "/predict"), forms, form_bodies)
        ),
        "fastapi": Contender(
            "FastAPI, a forward a request",
            uvicorn("fastapi_plain", ports[2]),
            given,
            None,
            Call(url(ports[2], "/predict"), raw, files),
        ),
        "fastapi-batching": Contender(
            "FastAPI, our batching",
            uvicorn("fastapi_batching", ports[3]),
            given,
            None,
            Call(url(ports[3], "/predict"), raw, files),
        ),
    }
    if has_openvino():
        second = settings_of(folder / "second", backend="openvino")
        shutil.copytree(settings.home, second.home)
        other = Context.open(second)
        stack.callback(other.engine.dispose)
        found["ours-openvino"] = ours(
            "ours, OpenVINO",
            second,
            Call(url(second.port, "/v1/predictions"), {**raw, "Authorization": f"Bearer {key}"}, files),
            lambda: len(serving_pids(other)) == second.api_workers,
        )
    if importlib.util.find_spec("litserve") is None:
        print("LitServe is left out: pip install -c constraints.txt -e '.[benchmarks]'", file=sys.stderr)
        del found["litserve"]
    return found, given


def turn(running: Running, script: Path, plan: Plan) -> list[dict[str, Any]]:
    """One contender's turn: a burst at each number of connections."""
    bursts = []
    call = running.contender.call
    with running.awake():
        burst(call, script, CONNECTIONS[1], 1)  # caches are warm again
        bursts.extend(quietest(partial(one_burst, running, script, plan, each)) for each in CONNECTIONS)
    return bursts


def one_burst(running: Running, script: Path, plan: Plan, connections: int) -> dict[str, Any]:
    """One burst, with what it took and what others took."""
    held: list[int] = []
    look = threading.Timer(plan.seconds / 2, lambda: held.extend(running.connections()))
    before, others = running.cpu_seconds(), Others()
    look.start()
    seen = burst(running.contender.call, script, connections, plan.seconds)
    look.join()
    cpu = running.cpu_seconds() - before
    share = others.share(cpu + seen.load_share * plan.seconds)
    check(running.contender.title, seen)
    each = cpu / (seen.per_second * plan.seconds)
    return {"connections": connections, "cpu_seconds": each, "held": held, "others": share, **asdict(seen)}


def quietest(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measured again while others take more than a little of the machine; the least disturbed of what was seen."""
    seen = []
    for _ in range(1 + MOST_REPEATS):
        seen.append(measure())
        if seen[-1]["others"] <= MOST_OF_OTHERS:
            break
    return min(seen, key=lambda each: each["others"])


def check(title: str, seen: Burst) -> None:
    """No answer may be an error."""
    if seen.n_refused or seen.n_broken:
        raise RuntimeError(f"Expected only answers of 2xx from {title}, got {seen}.")


def measure(folder: Path, shape: Shape, plan: Plan, only: list[str]) -> dict[str, Any]:
    """All rounds; figures by contender."""
    files = image_files(shape, N_IMAGES)
    rounds: dict[str, list[Any]] = defaultdict(list)
    with ExitStack() as stack:
        chosen, given = contenders(folder, shape, files, stack)
        if only:
            chosen = {name: contender for name, contender in chosen.items() if name in only}
        running, scripts = {}, {}
        for name, contender in chosen.items():
            scripts[name] = write_script(contender.call, folder / "load" / name)
            place = folder / "servers" / name
            place.mkdir(parents=True)
            running[name] = stack.enter_context(started(contender, place))
            print(f"started {contender.title}", file=sys.stderr)
        (folder / "files").mkdir()
        for number, file in enumerate(files):
            (folder / "files" / f"{number:03d}.jpg").write_bytes(file)
        limit = stack.enter_context(Limit(folder, folder / "files", given))
        names = [*running, "limit"]
        for number in range(plan.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                if name in running:
                    rounds[name].append(turn(running[name], scripts[name], plan))
                else:
                    for title, task in LIMITS.items():
                        rounds[title].append(quietest(partial(limit.burst, plan.seconds, **task)))
            print(f"round {number + 1} of {plan.rounds}", file=sys.stderr)
    titles = {name: contender.title for name, contender in chosen.items()}
    return {"shape": shape, "rounds": dict(rounds), "titles": titles, "bytes": float(np.mean([len(f) for f in files]))}


def tell(measured: dict[str, Any]) -> dict[str, Any]:
    """Print the table and the ratios; gives the ratios."""
    rounds, titles = measured["rounds"], measured["titles"]
    last = len(CONNECTIONS) - 1

    def series(name: str, what: str, place: int = last) -> list[float]:
        return [(each[place] if name in titles else each)[what] for each in rounds[name]]

    def median(name: str, what: str, place: int = last) -> float:
        return float(np.median(series(name, what, place)))

    head = "".join(f"{f'{n} connections':>26s}" for n in CONNECTIONS)
    print(f"{'':34s}{head}{'of the limit':>14s}{'CPU ms':>8s}{'wrk':>6s}{'others':>8s}")
    cells = f"{'a second   p50   p99 ms':>26s}" * len(CONNECTIONS)
    print(f"{'':34s}{cells}{'at 64':>14s}{'each':>8s}{'core':>6s}{'cores':>8s}")
    for name, title in {**titles, **{name: name for name in LIMITS}}.items():
        if name in titles:
            cells = "".join(
                f"{median(name, 'per_second', place):12.0f} {median(name, 'p50_seconds', place) * 1000:6.1f} "
                f"{median(name, 'p99_seconds', place) * 1000:6.1f}"
                for place in range(len(CONNECTIONS))
            )
            load = f"{median(name, 'load_share'):6.2f}"
        else:
            cells, load = f"{median(name, 'per_second'):{26 * len(CONNECTIONS)}.0f}", f"{'':6s}"
        share = ratio(series(name, "per_second"), series("limit", "per_second"))[0]
        others = 2 * max(series(name, "others"))
        print(f"{title:34s}{cells}{share:14.2f}{median(name, 'cpu_seconds') * 1000:8.2f}{load}{others:8.2f}")
    ratios: dict[str, Any] = {}
    if "ours" not in titles:
        return ratios
    print(f"{'at 64 connections':42s}{'throughput':24s}{'processor time':24s}")
    wanted = {"limit": 0.70, "limit of our engine": 0.70, "litserve": 2.0, "bentoml": 3.0, "fastapi-batching": 0.95}
    pairs = [("ours", name, least) for name, least in wanted.items() if name in rounds]
    pairs += [("ours-openvino", "limit of OpenVINO", None)] if "ours-openvino" in titles else []
    for mine, name, least in pairs:
        by_rate = ratio(series(mine, "per_second"), series(name, "per_second"))
        by_cpu = ratio(series(name, "cpu_seconds"), series(mine, "cpu_seconds"))
        ratios[f"{mine} / {name}"] = {"throughput": by_rate, "cpu": by_cpu}
        told = "".join(f"{'{:.2f} ({:.2f} to {:.2f})'.format(*each):24s}" for each in (by_rate, by_cpu))
        target = verdict(by_rate[0], least=least) if least is not None else ""
        print(f"  {titles[mine] + ' / ' + titles.get(name, name):40s}{told}{target}")
    held = ", ".join(" + ".join(map(str, turns[1]["held"])) for turns in rounds["ours"])
    ratios["tail"] = ratio(series("ours", "p99_seconds", 1), series("ours", "p50_seconds", 1))
    told = "{:.2f} ({:.2f} to {:.2f})".format(*ratios["tail"])
    print(f"  {'ours, p99 / p50 at ' + str(CONNECTIONS[1]):40s}{told:48s}{verdict(ratios['tail'][0], most=2.0)}")
    print(f"  connections by process at {CONNECTIONS[1]}: {held}")
    return ratios


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of a second instead of four of two")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--size", default="64x64x3", help="height, width and channels of the images")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="these contenders only")
    options = parser.parse_args()
    need_wrk()
    height, width, channels = (int(part) for part in options.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        plan = QUICK if options.quick else FULL
        measured = measure(Path(folder), (height, width, channels), plan, options.only)
    print(f"ResNet-18, {options.size} JPEG faces of {measured['bytes']:.0f} bytes; {machine()}")
    print(f"{plan.rounds} rounds of {plan.seconds:g} s")
    ratios = tell(measured)
    if options.json:
        options.json.write_text(json.dumps({"ratios": ratios, "machine": machine(), **measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
