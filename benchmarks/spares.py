"""Spare models: what an erasure costs with one, and what accuracy it leaves.

    python benchmarks/spares.py [--set att|drawn] [--models N] [--epochs E ...] [--rates R ...] [--folder FOLDER]
                                [--views N] [--subject ID ...] [--catch-up] [--figures-only] [--jobs N]
                                [--quick]

Somebody asks to be erased whose block has others: on the AT&T faces one, on drawn faces nine. For each of four such
blocks, N times with other seeds: the spare, trained without the block; the spare caught up, on everybody but the one
who asked; and a model retrained without the one. Prints for each, as a share of the retrained models' mean: accuracy on
the images that are retained, on those of held-out people, and on those of the *others* of the block, without whom the
spare was trained, and processor seconds; then the share that the gate rejects at N − 1 references, models trained
without the block. The settings of `catch_up` were chosen on the drawn faces.

`--views N` asks instead of N spares everything that docs/blind-spots.md asks: F / F_null in each of the ten views and
how many of the intervals contain 1, accuracies, features, relearning, exposure. For each who asks:

* a spare of a block of one, as the service has on the AT&T faces: N models without who asked beside N others;
* a spare of a block of two (drawn: of ten), beside N references of the same block, as a larger service judges it;
* the same spares, beside the N models without who asked alone;
* with `--catch-up` these spares caught up, beside the same.

What models said is kept in the folder, so that it goes on where it was ended.
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
from audit.statistics.features import features_of_runs  # noqa: E402
from audit.statistics.gate import gate  # noqa: E402
from benchmarks.blind_spots import (  # noqa: E402
    NOTHING,
    SPARE,
    Kind,
    from_original,
    judge,
    load,
    look,
    of_models,
    trained,
)
from benchmarks.gates.models import Set, opened  # noqa: E402
from unlearning.faces.views import views  # noqa: E402
from unlearning.methods import Settings, find_method, unlearn  # noqa: E402
from unlearning.recipes import RECIPES  # noqa: E402
from unlearning.training import Examples, logits, train  # noqa: E402

ATT = (("s31", "s7"), ("s19", "s4"), ("s6", "s17"), ("s25", "s31"))
ASKING = ("s31", "s7", "s19", "s4")
"""AT&T subjects of `--views`."""
WITHOUT_ONE, WITHOUT_BLOCK, CAUGHT_UP = "without who asked", "without the block", "caught up"
N_KNOWN = 16
"""Models with everybody, for the direction of features."""


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


def one_model(set_: Set, home: Path, block: Sequence[str], asking: Sequence[str], number: int, *, caught: bool) -> None:
    """Train a model of `--views` without a block, and look at it for each who asks; with `caught` also caught up."""
    folder, name = set_.folder(home), WITHOUT_ONE if len(block) == 1 else WITHOUT_BLOCK
    names = (name, CAUGHT_UP) if caught else (name,)
    if all(Kind(one, each, number).file(folder).exists() for one in asking for each in names):
        return
    torch.set_num_threads(1)
    gone = set_.faces.where(split="train", subjects=block)
    of = min(set_.block_of(one) for one in block)
    seed = 710_000_000 + 100_000 * of + 2 * number + (name == WITHOUT_BLOCK)
    model, seconds = trained(set_, np.setdiff1d(set_.rows, gone), seed)
    for one in asking:
        look(set_, model, one, seconds, Kind(one, name, number).file(folder))
        if caught:
            kept = set_.examples(np.setdiff1d(set_.rows, set_.faces.where(split="train", subjects=[one])))
            done = unlearn("catch_up", model, None, kept, recipe=RECIPES[set_.recipe], seed=seed, device="cpu")
            look(set_, done.model, one, done.cost.seconds, Kind(one, CAUGHT_UP, number).file(folder))


def block_with(set_: Set, one: str) -> tuple[str, ...]:
    """Whom the spare lacks that somebody is erased with: on the AT&T faces a pair, which the service would not make."""
    if set_.name != "att":
        return set_.blocks[set_.block_of(one)]
    return tuple(sorted(next(block for block in (*ATT, *((b, a) for a, b in ATT)) if block[0] == one)))


def make_all(set_: Set, home: Path, asking: Sequence[str], n_models: int, n_jobs: int, *, catch_up: bool) -> None:
    """Train what is missing: first spares beside models without who asked, then references of the block."""
    blocks: dict[tuple[str, ...], list[str]] = {}
    for one in asking:
        blocks.setdefault(block_with(set_, one), []).append(one)
    alone = [((one,), [one]) for one in asking]
    calls = [
        delayed(one_model)(set_, home, block, some, first + i, caught=catch_up and first == 0 and len(block) > 1)
        for first, those in ((0, [*alone, *blocks.items()]), (n_models, list(blocks.items())), (n_models, alone))
        for i in range(n_models)
        for block, some in those
    ]
    Parallel(n_jobs=n_jobs, verbose=1)(
        [delayed(from_original)(set_, home, asking, (), number) for number in range(N_KNOWN)]
    )
    Parallel(n_jobs=n_jobs, verbose=1)(calls)


def accuracy(mine: np.ndarray, theirs: np.ndarray) -> str:
    """Ratio of mean accuracies over models, with its 95 % interval by the delta method."""
    ratio = mine.mean() / theirs.mean()
    error = np.sqrt(mine.var(ddof=1) / len(mine) + (ratio**2) * theirs.var(ddof=1) / len(theirs)) / theirs.mean()
    return f"{ratio:.4f} ({ratio - 1.96 * error:.4f}–{ratio + 1.96 * error:.4f})"


def in_views(set_: Set, home: Path, asking: Sequence[str], n_models: int) -> None:
    """What the questions say of spares, and of spares caught up, as a whole and one by one."""
    folder, first, second = set_.folder(home), range(n_models), range(n_models, 2 * n_models)
    contained: dict[str, int] = {}
    for one in asking:
        alone = load(folder, one, WITHOUT_ONE, first)
        known = load(folder, one, NOTHING, range(N_KNOWN))
        judged = (
            ("spare of a block of one", WITHOUT_ONE, second, alone),
            ("spare, among references of its block", WITHOUT_BLOCK, first, load(folder, one, WITHOUT_BLOCK, second)),
            ("spare, among models without who asked", WITHOUT_BLOCK, first, alone),
            ("catch_up, among models without who asked", CAUGHT_UP, first, alone),
        )
        for what, name, numbers, out in judged:
            mine = load(folder, one, name, numbers)
            if min(len(bank.get("number", ())) for bank in (mine, out)) < N_KNOWN:
                continue
            row = judge(mine, out, known, SPARE, n_pairs=50)
            features = features_of_runs(mine["descriptors"], out["descriptors"], known["descriptors"], seed=0)
            n_containing = sum(1 in ratio for ratio in row.ratios)
            contained[what] = contained.get(what, 0) + n_containing
            print(f"\n{one}, {what}: {row.n} models, {len(out['views'])} to compare")
            print("  F / F_null " + "  ".join(f"{r.value:.2f} ({r.low:.2f}–{r.high:.2f})" for r in row.ratios))
            print(f"  contains 1 in {n_containing} of {len(row.ratios)} views")
            print(f"  RA, TA {', '.join(accuracy(mine['accuracy'][:, i], out['accuracy'][:, i]) for i in range(2))}")
            share = features.share
            print(
                f"  features {share.value:.3f} ({share.low:.3f}–{share.high:.3f}), all together p = "
                f"{features.detection_p:.3f}, shift {features.shift:+.2f}"
            )
            told = {"gate": row.gate, "relearning": row.relearning, "exposing": row.exposing}
            print("  " + ", ".join(f"{name} {of_models(part, row.n)}" for name, part in told.items()), flush=True)
    for what, n in contained.items():
        print(f"\n{what}: the interval contains 1 in {n} of {len(asking) * 10} views of {len(asking)} subjects")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["att", "drawn"], default="att")
    parser.add_argument("--models", type=int, default=9)
    parser.add_argument("--epochs", type=float, nargs="+", default=[4.0])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02])
    parser.add_argument("--folder", type=Path, default=Path("build/gate"))
    parser.add_argument("--views", type=int, default=0, metavar="N", help="every question, N models a side")
    parser.add_argument("--subject", action="append", metavar="ID", help="who asks in --views")
    parser.add_argument("--catch-up", action="store_true", help="with --views: also spares caught up")
    parser.add_argument("--figures-only", action="store_true", help="with --views: train nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes of --views")
    parser.add_argument("--quick", action="store_true", help="one block, three models: shows that it runs")
    options = parser.parse_args()
    options.models = 3 if options.quick else options.models
    torch.set_num_threads(1)
    set_ = opened(options.set, options.folder)
    if options.views:
        asking = options.subject or (ASKING if options.set == "att" else [block[0] for block in set_.blocks[:4]])
        if not options.figures_only:
            make_all(set_, options.folder, asking, options.views, options.jobs, catch_up=options.catch_up)
        in_views(set_, options.folder, asking, options.views)
        return
    blocks: Sequence[Sequence[str]] = ATT if set_.name == "att" else set_.blocks[:4]
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
