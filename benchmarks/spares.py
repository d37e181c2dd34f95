"""Spare models: what an erasure costs with one, and what accuracy it leaves.

    python benchmarks/spares.py [--set att|drawn] [--models N] [--epochs E ...] [--rates R ...] [--folder FOLDER]
                                [--views N] [--jobs N] [--quick]

Somebody asks to be erased whose block has others: on the AT&T faces one, on drawn faces seven. For each of four such
blocks, N times with other seeds: the spare, trained without the block; the spare caught up, on everybody but the one
who asked; and a model retrained without the one. Prints for each, as a share of the retrained models' mean: accuracy on
the images that are retained, on those of held-out people, and on those of the *others* of the block, whom the spare
never saw, and processor seconds; then the share that the gate rejects at N − 1 references, models trained without the
block. The settings of `catch_up` were chosen on the drawn faces.

`--views N` asks instead whether a spare looks like a model that lacks only who asked: F / F_null in each of the ten
views, N spares of each block against N models retrained without the one subject, and how many of the intervals contain
1; the same for `catch_up`. Margins are kept in the folder, so that it goes on where it was ended.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from joblib import Parallel, delayed  # noqa: E402

import audit  # noqa: E402
from audit.statistics.forgetting import forgetting_ratio  # noqa: E402
from audit.statistics.gate import gate  # noqa: E402
from benchmarks.gates.models import Set, opened  # noqa: E402
from unlearning.faces.views import views  # noqa: E402
from unlearning.methods import Settings, find_method, unlearn  # noqa: E402
from unlearning.recipes import RECIPES  # noqa: E402
from unlearning.training import Examples, logits, train  # noqa: E402

ATT = (("s31", "s7"), ("s19", "s4"), ("s6", "s17"), ("s25", "s31"))


Model = tuple[str, tuple[float, ...], float, np.ndarray]
"""Name, shares of images answered rightly, processor seconds, margins `(n_views, n_images)` of who asked."""


def one_block(set_: Set, block: Sequence[str], settings: dict[str, Settings], seeds: range) -> Iterator[Model]:
    """The models of a block whose first asks: for each seed a spare, a retrained one, and the spare caught up."""
    faces, recipe = set_.faces, RECIPES[set_.recipe]
    forget, other = (faces.where(split="train", subjects=some) for some in (block[:1], block[1:]))
    kept = np.setdiff1d(set_.rows, forget)
    judged_on = (kept, faces.where(split="test"), other)

    def of(rows: np.ndarray) -> Examples:
        return Examples.from_arrays(faces.images[rows], faces.labels[rows])

    def look(name: str, model: torch.nn.Module, seconds: float) -> Model:
        right = tuple(
            float(np.mean(logits(model, of(rows).images).argmax(axis=1) == faces.labels[rows])) for rows in judged_on
        )
        labels, shown = faces.labels[forget], views(np.asarray(faces.images[forget]))
        margins = [audit.margins(logits(model, Examples.from_arrays(v, labels).images), labels) for v in shown]
        return name, right, seconds, np.array(margins)

    def trained(rows: np.ndarray, seed: int) -> torch.nn.Module:
        return train(recipe, of(rows), n_classes=len(faces.classes), seed=seed, device="cpu").model

    for seed in seeds:
        spare = trained(np.setdiff1d(kept, other), 10 * seed)
        yield look("spare", spare, 0.0)
        begun = time.process_time()
        again = trained(kept, 10 * seed + 1)
        yield look("retrained", again, time.process_time() - begun)
        for name, chosen in settings.items():
            begun = time.process_time()
            caught = unlearn(
                "catch_up", spare, None, of(kept), recipe=recipe, seed=10 * seed + 2, device="cpu", settings=chosen
            ).model
            yield look(name, caught, time.process_time() - begun)


Kind = tuple[str, int, int]
"""What a model is, its block's number and its own."""


def keep(kind: Kind, name: str, folder: Path) -> None:
    """Train a model of `--views` and keep the margins `(n_views, n_images)` of who asked; a spare also caught up."""
    what, number, i = kind
    if margins_file(folder, name, kind).exists():
        return
    torch.set_num_threads(1)
    set_ = opened(name, folder)
    faces, recipe = set_.faces, RECIPES[set_.recipe]
    block = blocks_of(set_)[number]
    asked = faces.where(split="train", subjects=block[:1])
    kept = np.setdiff1d(set_.rows, asked)
    rows = kept if what == "retrained" else np.setdiff1d(kept, faces.where(split="train", subjects=block[1:]))

    def of(some: np.ndarray) -> Examples:
        return Examples.from_arrays(faces.images[some], faces.labels[some])

    seed = 40_000_000 + 1_000 * number + 2 * i + (what == "retrained")
    model = train(recipe, of(rows), n_classes=len(faces.classes), seed=seed, device="cpu").model
    made = {kind: model}
    if what == "spare":
        caught = unlearn("catch_up", model, None, of(kept), recipe=recipe, seed=seed, device="cpu").model
        made = {("catch_up", number, i): caught, **made}  # the file looked for is written last
    labels, shown = faces.labels[asked], views(np.asarray(faces.images[asked]))
    for each, judged in made.items():
        margins = [audit.margins(logits(judged, Examples.from_arrays(v, labels).images), labels) for v in shown]
        beside = margins_file(folder, name, each).with_suffix(".new")
        with beside.open("wb") as stream:
            np.save(stream, np.array(margins, np.float32))
        beside.replace(margins_file(folder, name, each))


def margins_file(folder: Path, name: str, kind: Kind) -> Path:
    """Where the margins of a model lie."""
    what, number, i = kind
    return folder / f"{name}-{what}-{number}-{i:03d}.npy"


def blocks_of(set_: Set) -> Sequence[Sequence[str]]:
    """Four blocks; the first of each asks."""
    return ATT if set_.name == "att" else set_.blocks[:4]


def in_views(set_: Set, folder: Path, n_models: int, n_jobs: int) -> None:
    """F / F_null in each view of spares and of spares caught up, against models that lack only who asked."""
    blocks = blocks_of(set_)
    trained = ("retrained", "spare")
    kinds = [(what, number, i) for i in range(n_models) for number in range(len(blocks)) for what in trained]
    Parallel(n_jobs=n_jobs, verbose=1)(delayed(keep)(kind, set_.name, folder) for kind in kinds)
    for what in ("spare", "catch_up"):
        contained = 0
        for number in range(len(blocks)):
            banks = {
                kind: np.array([np.load(margins_file(folder, set_.name, (kind, number, i))) for i in range(n_models)])
                for kind in ("retrained", what)
            }
            told = []
            for view in range(banks[what].shape[1]):
                ratio = forgetting_ratio(banks[what][:, view], banks["retrained"][:, view], seed=0).ratio
                contained += ratio.low <= 1 <= ratio.high
                told.append(f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})")
            print(f"{what}, block {number + 1}: {'  '.join(told)}")
        print(f"{what}: the interval contains 1 in {contained} of {10 * len(blocks)} views and subjects")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["att", "drawn"], default="att")
    parser.add_argument("--models", type=int, default=9)
    parser.add_argument("--epochs", type=float, nargs="+", default=[4.0])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02])
    parser.add_argument("--folder", type=Path, default=Path("build/gate"))
    parser.add_argument("--views", type=int, default=0, metavar="N", help="F / F_null in every view, N models a side")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes of --views")
    parser.add_argument("--quick", action="store_true", help="one block, three models: shows that it runs")
    options = parser.parse_args()
    options.models = 3 if options.quick else options.models
    torch.set_num_threads(1)
    set_ = opened(options.set, options.folder)
    if options.views:
        in_views(set_, options.folder, options.views, options.jobs)
        return
    blocks = blocks_of(set_)
    blocks = blocks[:1] if options.quick else blocks
    settings = {
        f"catch_up, {epochs:g} epochs at {rate:g}": find_method("catch_up").settings(
            epochs=epochs, learning_rate=rate, schedule="cosine"
        )
        for epochs in options.epochs
        for rate in options.rates
    }

    found: dict[str, list[tuple[float, ...]]] = {}
    rejected: dict[str, list[bool]] = {}
    for number, block in enumerate(blocks):
        models = list(one_block(set_, block, settings, range(1_000 * number, 1_000 * number + options.models)))
        bank = np.array([margins for name, _, _, margins in models if name == "spare"])
        seen: dict[str, int] = {}
        for name, right, seconds, margins in models:
            found.setdefault(name, []).append((*right, seconds))
            seen[name] = seen.get(name, -1) + 1  # the spare of this seed is no reference of what began with it
            rejected.setdefault(name, []).append(not gate(margins, np.delete(bank, seen[name], axis=0)).passed)
    full = np.mean(found["retrained"], axis=0)
    print(f"{'':34} {'retained':>9} {'held-out':>9} {'the others':>10} {'seconds':>8} {'rejected':>9}")
    for name in ("retrained", "spare", *settings):
        share = np.mean(found[name], axis=0) / full
        told = "  ".join(f"{one:8.3f}" for one in share)
        print(f"{name:34} {told} {np.mean(rejected[name]):8.3f} of {len(rejected[name])}")


if __name__ == "__main__":
    main()
