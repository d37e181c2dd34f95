"""Questions about audits whose quick answer is wrong, each settled by a run; docs/questions.md tells what came.

    python benchmarks/questions.py QUESTION [--folder FOLDER]

* `halves`: do models trained on random halves of the subjects serve as references? One set would be enough for
  everybody (LiRA), 64 trainings in place of 8 a block.
* `banks`: how far is the false positive rate of one bank of references from the rate on average?
* `machines`: do the same seed's weights come out equal on a processor without AVX512, or AVX2? PyTorch and oneDNN are
  told to do without, by `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA`.
* `splits`: how much does a table of methods move if the split into training and held-out subjects is drawn anew, and
  the subject to forget with it? Twenty splits, three methods.
* `ladder`: what do the positions of rungs do to the false positive rate of a whole run?
* `attempts`: three exact retrains with fresh seeds share one bank; how often does it reject all of them?
* `verification`: could models trained on 15 % of the remaining images serve as references, and does fine-tuning pass by
  them?

`halves`, `banks`, `ladder`, `attempts` and `verification` read the margins that `benchmarks/gate.py --set att` keeps
in the folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
import subprocess  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

import audit  # noqa: E402
from audit.policy import PRESETS  # noqa: E402
from audit.statistics.gate import gate  # noqa: E402
from audit.statistics.intervals import clopper_pearson  # noqa: E402
from audit.statistics.spread import PooledSpread, pooled_spread, tail_mean  # noqa: E402
from benchmarks.gates.models import Margins, Set, margins_of, opened  # noqa: E402
from unlearning.faces.views import views  # noqa: E402
from unlearning.methods import unlearn  # noqa: E402
from unlearning.recipes import RECIPES  # noqa: E402
from unlearning.training import Examples, logits, train  # noqa: E402

N_HALVES, N_REFERENCES, N_VERIFICATION = 64, 8, 24


def examples(set_: Set, rows: np.ndarray) -> Examples:
    """Some rows of the set."""
    return Examples.from_arrays(set_.faces.images[rows], set_.faces.labels[rows])


def in_views(model: torch.nn.Module, set_: Set, rows: np.ndarray) -> np.ndarray:
    """Margins `(n_views, n_images)`."""
    labels = set_.faces.labels[rows]
    shown = views(np.asarray(set_.faces.images[rows]))
    return np.array([audit.margins(logits(model, Examples.from_arrays(v, labels).images), labels) for v in shown])


def rate(found: list[bool]) -> str:
    """A share and of how many."""
    return f"{np.mean(found):.3f} of {len(found)}"


def halves(set_: Set, subjects: list[Margins]) -> None:
    """References that saw half of the others only, against those that saw all others."""
    rng, recipe = np.random.default_rng(0), RECIPES[set_.recipe]
    people = list(set_.faces.train_subjects())
    kept: list[tuple[set[str], np.ndarray]] = []
    for seed in range(N_HALVES):
        chosen = set(rng.permutation(people)[: len(people) // 2])
        data = examples(set_, set_.faces.where(split="train", subjects=chosen))
        model = train(recipe, data, n_classes=len(set_.faces.classes), seed=700_000_000 + seed, device="cpu").model
        kept.append((chosen, in_views(model, set_, set_.rows)))
    for way in ("halves", "all others"):
        false_positives: list[bool] = []
        power: dict[str, list[bool]] = {"d′ ≥ 3": [], "d′ 2–3": [], "below": []}
        spreads = []
        for subject in subjects:
            mine = np.isin(set_.rows, set_.faces.where(split="train", subjects=[subject.subject]))
            bank = subject.out
            if way == "halves":
                bank = np.array([margins[:, mine] for chosen, margins in kept if subject.subject not in chosen])
            t_out, t_in = tail_mean(subject.out), tail_mean(subject.in_)
            d = float((t_in.mean() - t_out.mean()) / t_out.std(ddof=1))
            spreads.append(tail_mean(bank).std(ddof=1) / t_out.std(ddof=1))
            where = "d′ ≥ 3" if d >= 3 else "d′ 2–3" if d >= 2 else "below"
            for _ in range(10):
                order = rng.permutation(len(subject.out))
                candidate = subject.out[order[0]]
                pool = np.delete(np.arange(len(bank)), order[0]) if way == "all others" else np.arange(len(bank))
                references = bank[rng.permutation(pool)[:N_REFERENCES]]
                false_positives.append(not gate(candidate, references).passed)
                original = subject.in_[rng.integers(len(subject.in_))]
                power[where].append(not gate(original, references).passed)
        told = "; ".join(f"{name} {rate(found)}" for name, found in power.items())
        print(
            f"{way}: spread of T {np.median(spreads):.2f} times that of models without the subject alone; retrained "
            f"models rejected {rate(false_positives)}; models that forgot nothing: {told}"
        )


def banks(set_: Set, subjects: list[Margins]) -> None:
    """The false positive rate of single banks, over all other retrained models of the subject."""
    del set_
    rng = np.random.default_rng(0)
    for n in (8, 16, 32):
        rates = []
        for subject in subjects:
            for _ in range(6):
                order = rng.permutation(len(subject.out))
                references = subject.out[order[:n]]
                rates.append(np.mean([not gate(each, references).passed for each in subject.out[order[n:]]]))
        low, high = np.quantile(rates, [0.05, 0.95])
        print(
            f"N = {n}, {len(rates)} banks: mean rate {np.mean(rates):.3f}, standard deviation {np.std(rates):.3f}, "
            f"from {low:.3f} to {high:.3f} for nine banks of ten; above .10: {np.mean(np.array(rates) > 0.1):.2f}"
        )


def machines(set_: Set, subjects: list[Margins]) -> None:
    """Weights and margins of one seed, with instructions left out."""
    del subjects
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import hashlib, numpy as np, torch\nfrom pathlib import Path\n"
        "from benchmarks.gates.models import opened\nfrom benchmarks.questions import examples, in_views\n"
        "from unlearning.recipes import RECIPES\nfrom unlearning.training import train\nimport dataclasses\n"
        "torch.set_num_threads(1)\n"
        "s = opened('att', Path(sys.argv[2]))\nr = dataclasses.replace(RECIPES[s.recipe], dtype=sys.argv[3])\n"
        "m = train(r, examples(s, s.rows), n_classes=len(s.faces.classes), seed=1, device='cpu').model\n"
        "w = torch.cat([p.detach().flatten() for p in m.parameters()]).numpy()\n"
        "np.savez(sys.argv[4], w=w, m=in_views(m, s, s.rows))\n"
    )
    ways = {
        "as it is": {},
        "again": {},
        "without AVX512": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        "without AVX2": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    }
    root, home = str(Path(__file__).resolve().parents[1]), sys.argv
    folder = home[home.index("--folder") + 1] if "--folder" in home else "build/gate"
    for dtype in ("bfloat16", "float32"):
        found = {}
        for name, environment in ways.items():
            file = Path(folder) / f"machine-{dtype}-{len(found)}.npz"
            command = [sys.executable, "-c", code, root, folder, dtype, str(file)]
            subprocess.run(command, env={**os.environ, **environment}, check=True)
            found[name] = np.load(file)
            file.unlink()
        first = found["as it is"]
        for name, other in found.items():
            weights, margins = (np.abs(other[key] - first[key]) for key in ("w", "m"))
            print(
                f"{dtype}, {name}: {'equal' if not weights.any() else 'other'} weights, largest difference "
                f"{weights.max():.2g}; margins differ by {margins.mean():.2g} on average, at most {margins.max():.2g}"
            )


def splits(set_: Set, subjects: list[Margins]) -> None:
    """Shift of T under three methods, for twenty splits and subjects drawn anew."""
    del subjects
    faces, recipe = set_.faces, RECIPES[set_.recipe]
    people, n_test, n_models = list(faces.people), 8, 8
    methods = ("remix", "random_mask", "kookmin")
    found: dict[str, list[float]] = {name: [] for name in ("nothing done", *methods)}
    for seed in range(20):
        rng = np.random.default_rng([11, seed])
        training = sorted(rng.permutation(people)[n_test:])
        subject = training[int(rng.integers(len(training)))]
        index = [people.index(one) for one in training]
        rows = np.flatnonzero(np.isin(faces.subject_of, index))
        forget = np.flatnonzero(faces.subject_of == people.index(subject))
        retain = np.setdiff1d(rows, forget)

        def fit(learned: np.ndarray, number: int, seed: int = seed) -> torch.nn.Module:
            base = 800_000_000 + 1_000 * seed + number
            data = examples(set_, learned)
            return train(recipe, data, n_classes=len(faces.classes), seed=base, device="cpu").model

        out = np.array([in_views(fit(retain, number), set_, forget) for number in range(n_models)])
        centre, spread = tail_mean(out).mean(), tail_mean(out).std(ddof=1)
        originals = [fit(rows, 100 + number) for number in range(2)]
        models = {"nothing done": originals}
        for method in methods:
            models[method] = [
                unlearn(
                    method, original, examples(set_, forget), examples(set_, retain), recipe=recipe, seed=seed,
                    device="cpu",
                ).model
                for original in originals
            ]  # fmt: skip
        for name, some in models.items():
            shifts = tail_mean(np.array([in_views(model, set_, forget) for model in some]))
            found[name].append(float((shifts.mean() - centre) / spread))
        print(f"{seed + 1} of 20", flush=True)
    for name, values in found.items():
        table = np.array(values)
        fours = [np.abs(table[np.random.default_rng(i).permutation(20)[:4]]).mean() for i in range(1000)]
        low, high = np.quantile(fours, [0.05, 0.95])
        print(
            f"{name}: shift of T in standard deviations of retrained models, mean {table.mean():+.2f}, from "
            f"{table.min():+.1f} to {table.max():+.1f}, standard deviation over splits {table.std(ddof=1):.2f}; mean "
            f"size over four splits {low:.2f} to {high:.2f}"
        )


def before_a_bank(
    subjects: list[Margins], n_references: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, PooledSpread]]:
    """Twelve banks of each subject: the references, the other retrained models, and the spread of the other blocks."""
    for subject in subjects:
        for _ in range(12):
            order = rng.permutation(len(subject.out))
            others = [
                other.out[rng.permutation(len(other.out))[:n_references]]
                for other in subjects
                if other.subject != subject.subject
            ]
            yield subject.out[order[:n_references]], subject.out[order[n_references:]], pooled_spread(others)


def attempts(set_: Set, subjects: list[Margins]) -> None:
    """Whether one bank rejects all attempts of exact retraining."""
    del set_
    rng, n_attempts = np.random.default_rng(0), PRESETS["standard"].retrain_attempts
    for n_references in (8, 16, 32):
        rejected = [
            [not gate(each, references, pooled=pooled).passed for each in candidates[:n_attempts]]
            for references, candidates, pooled in before_a_bank(subjects, n_references, rng)
        ]
        every = np.all(rejected, axis=1)
        low, high = clopper_pearson(int(every.sum()), len(every), alpha=0.05)
        print(
            f"N = {n_references}: one attempt rejected {np.mean(rejected):.3f}, all {n_attempts} {every.mean():.4f} "
            f"({every.sum()} of {len(every)}; {low:.4f} to {high:.4f})"
        )


def ladder(set_: Set, subjects: list[Margins]) -> None:
    """A perfect method on every rung: where it passes, and how often a human has to look."""
    del set_
    policy, rng = PRESETS["standard"], np.random.default_rng(0)
    levels = [policy.level_at(rung, policy.gate_alpha) for rung in range(len(policy.ladder))]
    levels += [levels[-1]] * (policy.retrain_attempts - 1)
    for name, alphas in (("the policy's levels", levels), ("α on every rung", [policy.gate_alpha] * len(levels))):
        ends = []
        for references, candidates, pooled in before_a_bank(subjects, N_REFERENCES, rng):
            passed = [
                gate(candidates[step], references, pooled=pooled, alpha=alpha).passed
                for step, alpha in enumerate(alphas)
            ]
            ends.append(passed.index(True) if any(passed) else len(alphas))
        shares = [f"{np.mean(np.array(ends) == step):.3f}" for step in range(len(alphas) + 1)]
        print(f"{name}, {len(ends)} runs: passed at step {', '.join(shares[:-1])}; none {shares[-1]}")


def verification(set_: Set, subjects: list[Margins]) -> None:
    """Models of 15 % as references beside models of everything but the subject, for who has a d′ of 1 or more."""
    rng = np.random.default_rng(0)
    kinds = ("retrained", "nothing done", "finetune", "remix", "random_mask", "kookmin")
    found: dict[tuple[str, str], list[bool]] = {}
    shifts: dict[tuple[str, str], list[float]] = {}
    spreads, n_subjects = [], 0
    for one in subjects:
        full, originals = tail_mean(one.out), tail_mean(one.in_)
        if originals.mean() - full.mean() < full.std(ddof=1):
            continue
        n_subjects += 1
        rows, kept = set_.rows_of(one.block), np.setdiff1d(set_.rows, set_.rows_of(one.block))
        small = []
        for number in range(N_VERIFICATION):
            part = np.sort(rng.permutation(kept)[: round(0.15 * len(kept))])
            seed = 95_000_000 + 1000 * one.block + number
            n_classes = len(set_.faces.classes)
            made = train(RECIPES[set_.recipe], examples(set_, part), n_classes=n_classes, seed=seed, device="cpu")
            small.append(in_views(made.model, set_, rows))
        half = len(one.out) // 2
        spreads.append(tail_mean(np.array(small)).std(ddof=1) / full.std(ddof=1))
        models = {"retrained": one.out[:half][:16], "nothing done": one.in_[:16]}
        models |= {kind: one.others[f"method-{kind}"] for kind in kinds[2:] if f"method-{kind}" in one.others}
        for name, references in (("15 %", np.array(small)), ("all others", one.out[half:])):
            of = tail_mean(references)
            for kind, candidates in models.items():
                verdicts = [
                    gate(model, references[rng.permutation(len(references))[:N_REFERENCES]]).p_value < 0.05
                    for model in candidates
                    for _ in range(3)
                ]
                found.setdefault((name, kind), []).extend(verdicts)
                shift = (np.median(tail_mean(candidates)) - of.mean()) / of.std(ddof=1)
                shifts.setdefault((name, kind), []).append(float(shift))
        print(f"{n_subjects} subjects", flush=True)
    print(f"T varies {np.median(spreads):.2f} times as much over models of 15 % (median over {n_subjects} subjects)")
    for name in ("15 %", "all others"):
        for kind in kinds:
            if (name, kind) in found:
                print(
                    f"references of {name:10}  {kind:12}  remembered (p < .05) {rate(found[name, kind])}, "
                    f"median shift {np.median(shifts[name, kind]):+.1f}"
                )


QUESTIONS = {
    "halves": halves,
    "banks": banks,
    "machines": machines,
    "splits": splits,
    "ladder": ladder,
    "attempts": attempts,
    "verification": verification,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=list(QUESTIONS))
    parser.add_argument("--folder", type=Path, default=Path("build/gate"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_ = opened("att", options.folder)
    QUESTIONS[options.question](set_, margins_of(set_, options.folder))


if __name__ == "__main__":
    main()
