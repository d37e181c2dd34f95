"""Published banks: the margins behind the gate's tables, in one file, and a method or metric judged on them.

    python benchmarks/banks.py build [--folder FOLDER] [--file FILE]
    python benchmarks/banks.py judge [--file FILE] [--set att|drawn]

`build` collects what `benchmarks/gate.py` keeps in its folder: margins of models trained with everybody, without each
subject, with a part of a subject's images, and of runs of unlearning methods. docs/banks.md describes the file; NumPy
alone reads it. `judge` trains nothing: of each method, and of retrained models and of originals in a method's place,
F / F_null, KLoM (the KL divergence of margins, Georgiev et al. 2024, arXiv 2410.23232), and the share that the gate
rejects with eight references, by how much had been learned of the subjects.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
# The project's root instead of this folder: `audit.py` here would hide the package `audit`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
import json  # noqa: E402
from collections.abc import Iterator, Mapping  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from scipy import stats  # noqa: E402

from audit.statistics.distances import kl_divergences  # noqa: E402
from audit.statistics.forgetting import forgetting_ratio  # noqa: E402
from audit.statistics.gate import gate  # noqa: E402
from audit.statistics.spread import pooled_spread, tail_mean  # noqa: E402

FILE = Path(__file__).with_name("banks.npz")
OUT, IN, ABOUT = "out", "in", "about"
N_REFERENCES, N_DRAWS, N_PAIRS, LEAST = 8, 3, 20, 8
CLASSES = ((3.0, np.inf), (2.0, 3.0), (1.0, 2.0), (-np.inf, 1.0))

Banks = Mapping[str, np.ndarray]
"""By kind, `(n_models, n_views, n_images)`."""


def build(folder: Path, file: Path) -> None:
    """Collect the margins of every set that is there, and write them."""
    import torch

    from benchmarks.gates.models import FIRST_ORACLE, N_ORACLES, SETS, margins_of, opened
    from unlearning.faces.views import VERSION, VIEWS
    from unlearning.methods import settings_for
    from unlearning.recipes import RECIPES

    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {
        "views": list(VIEWS), "views_version": VERSION, "torch": torch.__version__, "sets": {},
        "oracles": f"oracle_matching had out[{FIRST_ORACLE}:{FIRST_ORACLE + N_ORACLES}] as its oracles",
    }  # fmt: skip
    for name in SETS:
        set_ = opened(name, folder)
        recipe = RECIPES[set_.recipe]
        subjects = {}
        methods: set[str] = set()
        for one in margins_of(set_, folder):
            if len(one.out) <= LEAST:
                continue  # trained in passing
            kinds = {kind.removeprefix("method-"): models for kind, models in one.others.items()}
            methods |= {kind.removeprefix("method-") for kind in one.others if kind.startswith("method-")}
            for kind, models in {OUT: one.out, IN: one.in_, **kinds}.items():
                arrays[f"{name}/{kind}/{one.subject}"] = models.astype(np.float32)
            subjects[one.subject] = {"block": one.block, "tuned_on": one.subject in set_.tuning}
        about["sets"][name] = {
            "recipe": {"name": recipe.name, "digest": recipe.digest},
            "subjects": subjects,
            "methods": {method: settings_for(method, recipe).to_dict() for method in sorted(methods)},
        }
        print(f"{name}: {len(subjects)} subjects, methods {', '.join(sorted(methods)) or 'none'}")
    # A word of known length: NumPy reads it without pickle.
    np.savez_compressed(file, **{ABOUT: np.array(json.dumps(about))}, **arrays)
    print(f"{file}: {len(arrays)} banks, {file.stat().st_size / 1e6:.1f} MB")


def read(file: Path, name: str) -> dict[str, Banks]:
    """By subject the banks of one set."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(file, allow_pickle=False) as stored:
        for key in stored.files:
            if key != ABOUT and key.startswith(f"{name}/"):
                _, kind, subject = key.split("/", 2)
                found.setdefault(subject, {})[kind] = stored[key].astype(np.float64)
    return found


def described(file: Path) -> dict[str, Any]:
    """What the file says of itself."""
    with np.load(file, allow_pickle=False) as stored:
        about: dict[str, Any] = json.loads(str(stored[ABOUT]))
    return about


def learned(banks: Banks) -> float:
    """d′: how far originals lie above retrained models, in standard deviations of these."""
    out, in_ = tail_mean(banks[OUT]), tail_mean(banks[IN])
    return float((in_.mean() - out.mean()) / out.std(ddof=1))


def judge(subjects: Mapping[str, Banks], blocks: Mapping[str, int]) -> Iterator[tuple[str, str, float, np.ndarray]]:
    """Of each subject and kind: name, kind, d′ and (F / F_null, KLoM, share rejected), `(3,)`.

    Retrained models are judged by the other half of them. Runs have the first `FIRST_ORACLE` as references.
    """
    rng = np.random.default_rng(0)
    for subject, banks in subjects.items():
        others = [each[OUT][:N_REFERENCES] for name, each in subjects.items() if blocks[name] != blocks[subject]]
        pooled = pooled_spread(others) if len(others) > 2 else None
        half = len(banks[OUT]) // 2
        in_place = {"retrained": banks[OUT][:half], "nothing done": banks[IN]}
        for kind, models in (in_place | {k: v for k, v in banks.items() if k not in (OUT, IN)}).items():
            references = banks[OUT][half:] if kind == "retrained" else banks[OUT][:50]
            n = min(len(models), len(references), 24)
            if n < LEAST:
                continue
            ratio = forgetting_ratio(models[:n, 0], references[:n, 0], seed=0, n_pairs=N_PAIRS).ratio.value
            klom = float(np.mean(kl_divergences(references[:, 0], models[:, 0])))
            rejected = [
                not gate(model, references[rng.permutation(len(references))[:N_REFERENCES]], pooled=pooled).passed
                for model in models
                for _ in range(N_DRAWS)
            ]
            yield subject, kind, learned(banks), np.array([ratio, klom, np.mean(rejected)])


def show(name: str, found: list[tuple[str, str, float, np.ndarray]]) -> None:
    """The table of one set, and how the three figures agree over subjects and methods."""
    print(
        f"\n{name}: F / F_null, KLoM (nats), share rejected by the gate with {N_REFERENCES} references; medians, mean"
    )
    kinds = list(dict.fromkeys(kind for _, kind, _, _ in found))
    for bottom, top in CLASSES:
        inside = [row for row in found if bottom <= row[2] < top]
        if not inside:
            continue
        print(f"  d′ {bottom:g} to {top:g}")
        for kind in kinds:
            values = np.array([figures for _, of, _, figures in inside if of == kind])
            if len(values):
                ratio, klom = np.median(values[:, :2], axis=0)
                print(f"    {kind:16} {ratio:5.2f} {klom:7.3f} {values[:, 2].mean():6.2f}   {len(values)} subjects")
    known = [row for row in found if row[1] not in ("retrained",) and row[2] >= 1]
    if len(known) > 2:
        values = np.array([figures for *_, figures in known])
        for first, second, names in (
            (0, 1, "F / F_null and KLoM"),
            (0, 2, "F / F_null and gate"),
            (1, 2, "KLoM and gate"),
        ):
            rho = stats.spearmanr(values[:, first], values[:, second]).statistic
            print(f"  Spearman's ρ of {names} over {len(known)} pairs of kind and subject with d′ ≥ 1: {rho:+.2f}")


def main() -> None:
    """Collect, or judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("build", "judge"))
    parser.add_argument("--folder", type=Path, default=Path("build/gate"), help="of benchmarks/gate.py")
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--set", action="append", help="default all")
    options = parser.parse_args()
    if options.command == "build":
        build(options.folder, options.file)
        return
    about = described(options.file)
    for name in options.set or about["sets"]:
        blocks = {subject: each["block"] for subject, each in about["sets"][name]["subjects"].items()}
        show(name, list(judge(read(options.file, name), blocks)))


if __name__ == "__main__":
    main()
