"""Relearning: who comes back faster than a retrained model when a little of a subject is learned again.

    python benchmarks/relearning.py [--subject ID ...] [--models N] [--originals N] [--folder FOLDER] [--quick]

On AT&T faces. For each subject N models retrained without, and of each original what several methods make of it; all
are taught half of the subject's images again (`unlearning.relearning`), and the others are looked at. Judged by the
statistic of a qualification (`audit.statistics.relearning`): each run by the retrained models, each retrained model by
the others of its subject (false positives), and originals (power on nothing done). Beside it the same test on the same
images as the models stand, before they learn anything again.

*hidden* is a control: the original with another last layer, fitted so that the subject's images have the margins of a
retrained model. All that was learned is still in the features. What passes as it stands and is told apart after a step
or two is what relearning is for.

What a model said is kept in the folder, so that a run that was stopped goes on. Learning rate, steps and retained
images were chosen on s34 and two drawn subjects, of which none is reported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
import copy  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

import audit  # noqa: E402
from audit.statistics.gate import ALPHA  # noqa: E402
from audit.statistics.intervals import clopper_pearson  # noqa: E402
from audit.statistics.relearning import areas, p_value, relearning  # noqa: E402
from audit.statistics.spread import tail_mean  # noqa: E402
from benchmarks.gates.models import Set, opened  # noqa: E402
from unlearning import relearning as steps  # noqa: E402
from unlearning.methods import unlearn  # noqa: E402
from unlearning.models import to_inputs  # noqa: E402
from unlearning.procedures.oracles import with_oracles  # noqa: E402
from unlearning.recipes import RECIPES  # noqa: E402
from unlearning.training import Examples, logits, train  # noqa: E402

SUBJECTS = ("s31", "s19", "s6", "s26", "s7", "s36", "s4", "s17")
METHODS = ("finetune", "random_mask", "salun", "kookmin", "oracle_matching", "random_label")
RETRAINED, NOTHING, HIDDEN = "retrained", "nothing done", "hidden"
FIRST_ORACLE, N_ORACLES = 1_000, 8
_CPU = torch.device("cpu")


def curves(model: nn.Module, forget: Examples, retain: Examples, recipe: str = "att_small") -> np.ndarray:
    """Margins of the subject's images as the model stands and after each step, `(STEPS + 1, n_images)`."""
    own, _ = steps.halves(len(forget))
    beside = retain.subset(steps.retained(len(own), len(retain)).ravel())
    found = [margins(model, forget)]
    for learner in steps.relearn(model, forget.subset(own), beside, recipe=RECIPES[recipe], device=_CPU):
        found.append(margins(learner, forget))
    return np.array(found)


def margins(model: nn.Module, examples: Examples) -> np.ndarray:
    return audit.margins(logits(model, examples.images), examples.labels.numpy())


def hide(original: nn.Module, forget: Examples, retain: Examples, wanted: np.ndarray) -> nn.Module:
    """The original with a last layer that gives the subject's images the margins wanted, and else the same answers."""
    hidden = copy.deepcopy(original).eval()
    seen: list[torch.Tensor] = []
    hook = hidden.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        features = []
        for examples in (forget, retain):
            seen.clear()
            for part in examples.images.split(256):
                hidden(to_inputs(part))
            features.append(torch.cat(seen))
        target = torch.softmax(hidden.fc(features[1]), dim=1)
    hook.remove()
    optimiser = torch.optim.Adam(hidden.fc.parameters(), lr=0.05)
    rows, labels = torch.arange(len(forget)), forget.labels
    for _ in range(300):
        z = hidden.fc(features[0])
        rest = torch.logsumexp(z.scatter(1, labels[:, None], -torch.inf), dim=1)
        error = (z[rows, labels] - rest - torch.as_tensor(wanted, dtype=torch.float32)).square().mean()
        loss = error + 5 * cross_entropy(hidden.fc(features[1]), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return hidden


def sets_of(set_: Set, subject: str) -> tuple[Examples, Examples]:
    rows = set_.faces.where(split="train", subjects=[subject])
    return set_.examples(rows), set_.examples(np.setdiff1d(set_.rows, rows))


def kept(folder: Path, subject: str, kind: str, number: int) -> Path:
    return folder / subject / kind.replace(" ", "-") / f"{number:04d}.npy"


def keep(file: Path, found: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}")
    with beside.open("wb") as stream:
        np.save(stream, found)
    beside.replace(file)


def retrained(set_: Set, folder: Path, subject: str, numbers: range) -> None:
    forget, retain = sets_of(set_, subject)
    for number in numbers:
        file = kept(folder, subject, RETRAINED, number)
        if not file.exists():
            seed = 400_000_000 + 10_000 * set_.block_of(subject) + number
            model = train(
                RECIPES[set_.recipe], retain, n_classes=len(set_.faces.classes), seed=seed, device="cpu"
            ).model
            keep(file, curves(model, forget, retain))


def successor(kind: str, original: nn.Module, number: int, oracles: np.ndarray, *sets: Examples) -> nn.Module:
    """What is made of an original, which forgets the first of the sets and retains the second."""
    forget, retain = sets
    if kind == NOTHING:
        return original
    if kind == HIDDEN:
        return hide(original, forget, retain, oracles[number % len(oracles)])
    mine = with_oracles(forget, oracles) if kind == "oracle_matching" else forget
    recipe, seed = RECIPES["att_small"], 500_000_000 + number
    return unlearn(kind, original, mine, retain, recipe=recipe, seed=seed, device="cpu").model


def draw(set_: Set, folder: Path, subjects: list[str], n_models: int, n_originals: int) -> None:
    """Make what is missing."""
    for subject in subjects:
        retrained(set_, folder, subject, range(n_models))
        retrained(set_, folder, subject, range(FIRST_ORACLE, FIRST_ORACLE + N_ORACLES))
        print(f"retrained without {subject}", flush=True)
    kinds = [NOTHING, HIDDEN, *METHODS]
    everything = set_.examples(set_.rows)
    for number in range(n_originals):
        missing = {s: [kind for kind in kinds if not kept(folder, s, kind, number).exists()] for s in subjects}
        if not any(missing.values()):
            continue
        seed = 450_000_000 + number
        original = train(RECIPES[set_.recipe], everything, n_classes=len(set_.faces.classes), seed=seed, device="cpu")
        for subject, wanted in missing.items():
            sets = sets_of(set_, subject)
            oracles = load(folder, subject, RETRAINED, range(FIRST_ORACLE, FIRST_ORACLE + N_ORACLES))[:, 0]
            for kind in wanted:
                model = successor(kind, original.model, number, oracles, *sets)
                keep(kept(folder, subject, kind, number), curves(model, *sets))
        print(f"original {number + 1} of {n_originals}", flush=True)


def load(folder: Path, subject: str, kind: str, numbers: range) -> np.ndarray:
    return np.array([np.load(kept(folder, subject, kind, number)) for number in numbers])


def share(found: list[bool]) -> str:
    low, high = clopper_pearson(sum(found), len(found), alpha=0.05)
    return f"{np.mean(found):.3f} ({float(low):.3f}–{float(high):.3f}) of {len(found)}"


def judge(folder: Path, subjects: list[str], n_models: int, n_originals: int) -> None:
    """Print false positive rates, and what is told apart of each kind as it stands and after relearning."""
    rng = np.random.default_rng(0)
    alone: dict[str, list[bool]] = {"as they stand": [], "after relearning": []}
    together: list[bool] = []
    table: dict[str, dict[str, tuple[float, float, float, float]]] = {}
    learned = {}
    for subject in subjects:
        out = load(folder, subject, RETRAINED, range(n_models))
        own, others = steps.halves(out.shape[2])
        stand, after = out[:, :1, others], areas(out, own)
        for name, bank in (("as they stand", stand), ("after relearning", after)):
            alone[name] += [p_value(bank[i], np.delete(bank, i, axis=0)) < ALPHA for i in range(n_models)]
        for draw_ in range(10):
            order = rng.permutation(n_models)
            one, other = out[order[: n_models // 2]], out[order[n_models // 2 :]]
            together.append(relearning(one, other, None, own, seed=draw_).detection_p < ALPHA)
        for kind in (NOTHING, HIDDEN, *METHODS):
            runs = load(folder, subject, kind, range(n_originals))
            found = relearning(runs, out, None, own, seed=0)
            before = [p_value(run, stand) < ALPHA for run in runs[:, :1, others]]
            back = [p_value(run, after) < ALPHA for run in areas(runs, own)]
            news = np.mean([b and not a for a, b in zip(before, back, strict=True)])
            table.setdefault(kind, {})[subject] = (np.mean(before), found.told_apart.value, news, found.detection_p)
        t = tail_mean(stand)
        known = tail_mean(load(folder, subject, NOTHING, range(n_originals))[:, :1, others])
        learned[subject] = (known.mean() - t.mean()) / t.std(ddof=1)
    print(f"\n{n_models} retrained models of each subject, {n_originals} originals; α = {ALPHA:g}, upper side")
    for name, verdicts in alone.items():
        print(f"false positives, {name}: {share(verdicts)}")
    print(f"false positives, halves of retrained models told apart together: {share(together)}")
    print("d′ on the images looked at: " + ", ".join(f"{subject} {d:.1f}" for subject, d in learned.items()))
    print("share of runs told apart: as they stand / after relearning / after relearning only; p of all together")
    for kind, of in table.items():
        mean = np.mean([figures[:3] for figures in of.values()], axis=0)
        n_apart = sum(p < ALPHA for *_, p in of.values())
        told = "; ".join(f"{s} {a:.2f}/{b:.2f}/{c:.2f}, {p:.3f}" for s, (a, b, c, p) in of.items())
        print(f"{kind:16} mean {mean[0]:.2f}/{mean[1]:.2f}/{mean[2]:.2f}, together {n_apart} of {len(of)}: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", action="append", metavar="ID")
    parser.add_argument("--models", type=int, default=24)
    parser.add_argument("--originals", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("build/gate"))
    parser.add_argument("--quick", action="store_true", help="one subject, few models: shows that it runs")
    options = parser.parse_args()
    if options.quick:
        options.subject, options.models, options.originals = ["s31"], 8, 4
    torch.set_num_threads(1)
    set_ = opened("att", options.folder)
    subjects = list(options.subject or SUBJECTS)
    folder = set_.folder(options.folder) / "relearning" / "-".join(map(str, steps.settings().values()))
    started = time.process_time()
    draw(set_, folder, subjects, options.models, options.originals)
    judge(folder, subjects, options.models, options.originals)
    print(f"{time.process_time() - started:.0f} processor seconds")


if __name__ == "__main__":
    main()
