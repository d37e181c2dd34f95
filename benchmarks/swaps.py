"""A hundred swaps in a run under load: failed requests, mixed answers, late ones, memory, and what the load feels.

    python benchmarks/swaps.py [--quick] [--json FILE] [--size 64x64x3] [--shadow SHARE]

The service as it is started in the container, two serving processes, ResNet-18s of random weights whose answers are
computed beforehand; 32 connections, each with one request under way at all times. Ten versions are deployed in turn as
the worker deploys them (`service/models/deployment.py`): staged beside the old, committed, acknowledged. Counted are

* failed requests: anything but 200;
* torn answers: probabilities that the version they name does not give for that image, or a label, version and
  generation that do not go together;
* late answers: of an older generation though the request was sent after the serving process at the other end of that
  connection had acknowledged the new one; and those that were only received after it, with how much later;
* the mixed window: from the first answer of the new generation received to the last of an older one;
* p99 in the second of the swap (from the start of staging; longer if the swap takes longer) beside p99 of the rest;
* resident memory of each serving process after each swap.

With `--shadow` it measures instead what it costs that a staged version answers a share of the predictions too
(`service/models/shadowing.py`): stretches with it and without it in turns, in one service, every version staged all the
time, and besides stretches before any is staged.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

# The project's root instead of this folder: `audit.py` here would hide the package `audit`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.contenders.model import Shape  # noqa: E402
from benchmarks.loads.client import Plan, answers_of  # noqa: E402
from benchmarks.loads.figures import Others, machine, verdict  # noqa: E402
from benchmarks.loads.homes import cpu_seconds, image_files, make_home, pixels, serving, serving_pids, settings_of  # noqa: E402
from service.context import Context  # noqa: E402
from service.inference.engine import Engine  # noqa: E402
from service.models import registry, shadowing  # noqa: E402
from service.models.barrier import look  # noqa: E402
from service.models.deployment import abort, deploy, stage  # noqa: E402
from service.serving.speedups.packed_weights import pack  # noqa: E402
from service.store.engine import reading  # noqa: E402
from service.telemetry.logs import set_up_logs  # noqa: E402

N_VERSIONS = 10
N_IMAGES = 32
CONNECTIONS = 32
CYCLE_SECONDS = 2.4
SWAP_SECONDS = 1.0
STRETCH_SECONDS = 6.0
TOLERANCE = 0.02  # bfloat16 in batches of another size


@dataclass(frozen=True)
class Swap:
    """One deployment, times on the wall clock.

    Attributes:
        acknowledged_at: by each serving process.
        resident_bytes: of each, in the order of their numbers, after the swap.
    """

    generation: int
    digest: str
    began: float
    committed: float
    reached: float
    acknowledged_at: dict[int, float]
    resident_bytes: list[int]


def expected_of(context: Context, digests: list[str], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What each version says of each image, computed one at a time as served: `(n_versions, n_images, n_classes)`."""
    said, backend = [], context.settings.backend
    for digest in digests:
        weights = registry.load_checked(context, digest, in_pages=backend == "openvino")
        engine = Engine.load(weights, 1, context.settings.device, backend=backend, pack=pack)
        said.append(np.concatenate([engine.predict(image[np.newaxis]) for image in images]))
    return np.stack(said)


def deploy_all(context: Context, digests: list[str], n_swaps: int, pids: list[int]) -> list[Swap]:
    """So many swaps, one a cycle."""
    swaps = []
    for number in range(1, n_swaps + 1):
        began, committed = time.time(), 0.0

        def last_look() -> None:
            nonlocal committed
            committed = time.time()

        barrier = deploy(context, digests[number % len(digests)], before_commit=last_look)
        reached = time.time()
        acknowledged = {row.pid: row.acknowledged_at.timestamp() for row in barrier.processes if row.acknowledged_at}
        resident = [psutil.Process(pid).memory_info().rss for pid in pids]
        swaps.append(Swap(barrier.generation, barrier.digest, began, committed, reached, acknowledged, resident))
        time.sleep(max(0.0, began + CYCLE_SECONDS - time.time()))
    return swaps


def ends_of(pids: list[int]) -> dict[int, int]:
    """Process at the other end of each client's port."""
    return {
        connection.raddr.port: pid
        for pid in pids
        for connection in psutil.Process(pid).net_connections(kind="tcp")
        if connection.raddr
    }


def torn(
    answers: dict[str, Any], expected: NDArray[np.float32], digests: list[str], generations: dict[int, str]
) -> NDArray[np.bool_]:
    """Whether each answer of 200 is not of one version: `(n_answers,)`."""
    is_torn = np.zeros(len(answers["status"]), bool)
    place = {digest: number for number, digest in enumerate(digests)}
    names = [str(name) for name in answers["versions"]]
    for row in np.flatnonzero(answers["status"] == 200):
        digest = names[answers["version"][row]]
        said, label = answers["probabilities"][row], answers["label"][row]
        right = expected[place[digest], answers["image"][row]]
        whole = label >= 0 and said[label] == said.max() and generations[int(answers["generation"][row])] == digest
        is_torn[row] = not whole or np.abs(said - right).max() > TOLERANCE
    return is_torn


def judge(answers: dict[str, Any], swaps: list[Swap], ends: dict[int, int]) -> dict[str, Any]:
    """Figures of answers beside swaps; see the module."""
    began, ended, generation = answers["began"], answers["ended"], answers["generation"]
    good = answers["status"] == 200
    latency = ended - began
    process = np.array([ends.get(int(port), -1) for port in answers["port"]])
    sent_late, received_late, windows = 0, [], []
    swapping = np.zeros(len(began), bool)
    p99_of_swaps = []
    for swap in swaps:
        within = (began >= swap.began) & (began < max(swap.began + SWAP_SECONDS, swap.reached))
        swapping |= within
        if (within & good).any():
            p99_of_swaps.append(float(np.quantile(latency[within & good], 0.99)))
        older = good & (generation < swap.generation)
        for pid, at in swap.acknowledged_at.items():
            late = older & (process == pid) & (ended > at)
            sent_late += int((late & (began > at)).sum())
            received_late += (ended[late] - at).tolist()
        new = good & (generation == swap.generation)
        if new.any():
            windows.append(max(0.0, float(ended[older].max(initial=0.0) - ended[new].min())))
    steady = good & ~swapping & (began > swaps[0].began) & (began < swaps[-1].reached + SWAP_SECONDS)
    p99_steady = float(np.quantile(latency[steady], 0.99))
    p99_swapping = float(np.quantile(latency[swapping & good], 0.99))
    resident = np.array([swap.resident_bytes for swap in swaps], float)  # (n_swaps, n_processes)
    tenth = max(3, len(swaps) // 10)  # one swap's figure says little: the allocator gives memory back when it likes
    early, late_ones = resident[tenth : 2 * tenth] if len(swaps) > tenth else resident, resident[-tenth:]
    return {
        "n_answers": len(began),
        "per_second": float(good.sum() / (ended.max() - began.min())),
        "n_failed": int((~good).sum()),
        "n_unmatched": int((process < 0).sum()),
        "n_sent_late": sent_late,
        "n_received_late": len(received_late),
        "most_late_seconds": max(received_late, default=0.0),
        "window_seconds": [float(np.quantile(windows, q)) for q in (0.5, 0.9, 1.0)],
        "p50_steady_seconds": float(np.quantile(latency[steady], 0.5)),
        "p99_steady_seconds": p99_steady,
        "p99_swapping_seconds": p99_swapping,
        "p99_ratio": p99_swapping / p99_steady,
        "p99_of_worst_swap_seconds": max(p99_of_swaps),
        "staging_seconds": float(np.median([swap.committed - swap.began for swap in swaps])),
        "commit_to_barrier_seconds": [
            float(np.quantile([swap.reached - swap.committed for swap in swaps], q)) for q in (0.5, 1.0)
        ],
        "resident_bytes": [float(np.median(early)), float(np.median(late_ones))],
        "resident_growth": float(np.median(late_ones) / np.median(early)),
    }


def measure(folder: Path, shape: Shape, n_swaps: int) -> dict[str, Any]:
    """The whole run."""
    files = image_files(shape, N_IMAGES)
    names = []
    for number, file in enumerate(files):
        names.append(str(folder / f"{number}.jpg"))
        Path(names[-1]).write_bytes(file)
    settings = settings_of(folder / "home")
    digests, key = make_home(settings, shape, files, range(N_VERSIONS))
    context = Context.open(settings)
    expected = expected_of(context, digests, np.stack([pixels(file, shape) for file in files]))
    between = np.abs(expected[:, np.newaxis] - expected[np.newaxis]).max(axis=3)  # (n_versions, n_versions, n_images)
    apart = between[~np.eye(len(digests), dtype=bool)] > 2 * TOLERANCE
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{settings.port}/v1/predictions"
    swaps: list[Swap] = []
    ends: dict[int, int] = {}
    with serving(context) as (_, pids):
        began, before, others = time.time(), cpu_seconds(pids) + time.process_time(), Others()

        def meanwhile() -> None:
            time.sleep(2.0)
            ends.update(ends_of(pids))
            swaps.extend(deploy_all(context, digests, n_swaps, pids))
            ends.update(ends_of(pids))

        answers = answers_of(Plan(url, headers, names, CONNECTIONS, keep=True), folder, meanwhile=meanwhile)
        after = serving_pids(context)
        own = cpu_seconds(pids) + time.process_time() - before + float(answers["load_share"]) * (time.time() - began)
        share = others.share(own)
    context.engine.dispose()
    generations = {1: digests[0], **{swap.generation: swap.digest for swap in swaps}}
    return {
        **judge(answers, swaps, ends),
        "n_torn": int(torn(answers, expected, digests, generations).sum()),
        "told_apart": float(apart.mean()),
        "connections_of_processes": [list(ends.values()).count(pid) for pid in pids],
        "same_processes": after == pids,
        "others": share,
        "load_share": float(answers["load_share"]),
        "swaps": [asdict(swap) for swap in swaps],
    }


def measure_shadow(folder: Path, shape: Shape, share: float, n_turns: int) -> dict[str, Any]:
    """Throughput and latency of stretches without a staged version, with one, and with one that is shadowed."""
    files = image_files(shape, N_IMAGES)
    names = [str(folder / f"{number}.jpg") for number in range(len(files))]
    for name, file in zip(names, files, strict=True):
        Path(name).write_bytes(file)
    base = settings_of(folder / "home")
    settings = base.model_copy(
        update={"shadow_seconds": STRETCH_SECONDS, "shadow_share": share, "shadow_images": 10**9}
    )
    digests, key = make_home(settings, shape, files, range(2))
    context = Context.open(settings)
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{settings.port}/v1/predictions"
    stretches: list[tuple[str, float, float]] = []

    def stretch(kind: str, spend: Callable[[], object]) -> None:
        began = time.time()
        spend()
        stretches.append((kind, began, time.time()))

    def all_have_staged(generation: int) -> bool:
        return look(context).all_have(lambda row: row.staged_generation >= generation)

    def meanwhile() -> None:
        time.sleep(2.0)
        for number in range(n_turns):
            stretch("alone", lambda: time.sleep(STRETCH_SECONDS))
            generation = stage(context, digests[1])
            while not all_have_staged(generation):
                time.sleep(0.05)
            kinds = ("staged", "shadowed") if number % 2 else ("shadowed", "staged")
            for kind in kinds:
                if kind == "staged":
                    stretch(kind, lambda: time.sleep(STRETCH_SECONDS))
                else:
                    stretch(kind, partial(shadowing.compare, context, str(number), digests[1]))
            abort(context, generation)
            time.sleep(1.0)

    with serving(context):
        answers = answers_of(Plan(url, headers, names, CONNECTIONS, keep=True), folder, meanwhile=meanwhile)
    with reading(context.engine) as s:
        compared = [shadowing.find(s, str(number)) for number in range(n_turns)]
    context.engine.dispose()
    ended, good = answers["ended"], answers["status"] == 200
    latency = ended - answers["began"]
    found: dict[str, Any] = {"share": share, "n_failed": int((~good).sum()), "stretches": []}
    for kind, began, until in stretches:
        within = good & (ended >= began) & (ended < until)
        found["stretches"].append(
            {
                "kind": kind, "per_second": float(within.sum() / (until - began)),
                "p50_seconds": float(np.quantile(latency[within], 0.5)),
                "p99_seconds": float(np.quantile(latency[within], 0.99)),
            }
        )  # fmt: skip
    found["compared"] = [each.summary() for each in compared if each is not None]
    return found


def tell_shadow(found: dict[str, Any]) -> None:
    """Print medians by kind, and each turn's ratio of throughput to the stretch without a staged version."""
    of_kind = {
        kind: [row for row in found["stretches"] if row["kind"] == kind] for kind in ("alone", "staged", "shadowed")
    }
    for kind, rows in of_kind.items():
        ratios = [row["per_second"] / alone["per_second"] for row, alone in zip(rows, of_kind["alone"], strict=True)]
        median = {name: float(np.median([row[name] for row in rows])) for name in rows[0] if name != "kind"}
        print(
            f"  {kind:10s}{median['per_second']:8.0f} a second, p50 {1000 * median['p50_seconds']:.0f} ms, "
            f"p99 {1000 * median['p99_seconds']:.0f} ms; beside alone {np.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(f"  failed requests {found['n_failed']}; share {found['share']}; compared {found['compared']}")


def tell(found: dict[str, Any]) -> None:
    """Print the figures and the targets."""

    def row(title: str, value: str, target: str = "") -> None:
        print(f"  {title:46s}{value:>24s}  {target}")

    n_swaps = len(found["swaps"])
    row("answers, a second", f"{found['n_answers']}, {found['per_second']:.0f}")
    row("the client's share of a core; others of all", f"{found['load_share']:.2f}; {found['others']:.0%}")
    row("failed requests", str(found["n_failed"]), verdict(found["n_failed"], most=0))
    row("torn answers", str(found["n_torn"]), verdict(found["n_torn"], most=0))
    row("  pairs of versions an image tells apart", f"{found['told_apart']:.1%}")
    row(
        "older answers to requests after the barrier's row",
        str(found["n_sent_late"]),
        verdict(found["n_sent_late"], most=0),
    )
    late = f"{found['n_received_late']}, {found['most_late_seconds'] * 1000:.1f} ms"
    row("older answers received after it, most late", late)
    window = [1000 * each for each in found["window_seconds"]]
    told = "{:.1f}, {:.1f}, {:.1f} ms".format(*window)
    row("mixed window: median, 90 %, most", told, verdict(window[-1], most=10))
    p99 = [1000 * found[name] for name in ("p50_steady_seconds", "p99_steady_seconds", "p99_swapping_seconds")]
    row("steady p50, p99; p99 in a swap's second", "{:.0f}, {:.0f}; {:.0f} ms".format(*p99))
    row("p99 in a swap's second / steady", f"{found['p99_ratio']:.2f}", verdict(found["p99_ratio"], most=3))
    row("p99 in the worst swap's second", f"{1000 * found['p99_of_worst_swap_seconds']:.0f} ms")
    barrier = [1000 * each for each in found["commit_to_barrier_seconds"]]
    row("staging; commit to barrier, most", f"{found['staging_seconds']:.2f} s; {barrier[0]:.0f}, {barrier[1]:.0f} ms")
    early, late_bytes = (each / 1e6 for each in found["resident_bytes"])
    row(
        "memory of a process, early and late",
        f"{early:.0f}, {late_bytes:.0f} MB",
        verdict(found["resident_growth"], most=1.05),
    )
    row("no process ended", str(found["same_processes"]))
    print(f"  {n_swaps} swaps; connections by process {found['connections_of_processes']}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="eight swaps instead of a hundred")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--size", default="64x64x3", help="height, width and channels of the images")
    parser.add_argument("--shadow", type=float, metavar="SHARE", help="measure what shadowing costs instead")
    options = parser.parse_args()
    set_up_logs("console", level="warning")
    height, width, channels = (int(part) for part in options.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="swaps-") as folder:
        if options.shadow:
            found = measure_shadow(Path(folder), (height, width, channels), options.shadow, 3 if options.quick else 8)
        else:
            found = measure(Path(folder), (height, width, channels), 8 if options.quick else 100)
    print(f"ResNet-18, {options.size} JPEG faces, {CONNECTIONS} connections; {machine()}")
    (tell_shadow if options.shadow else tell)(found)
    if options.json:
        options.json.write_text(json.dumps({"size": options.size, "machine": machine(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
