"""Do the three ways to draw banks rank unlearning methods alike?

    python benchmarks/setups_agreement.py [--methods NAME,…] [--person ID] [--quick] [--json FILE] [--home FOLDER]

On AT&T faces (recipe `att_small`, default person s31) the banks of `full`, `reuse_n_n` and `reuse_n_1` are drawn and
every method is scored by as many models a side in each. Prints each method's mean score by setup, and for each two
setups Kendall's τ of the rankings with a bootstrap interval over experiments. Experiments of the reuse kinds share one
pool, so their part of the interval is that of drawing from this pool. The pool of `reuse_n_n` is the first models of
`full`; `reuse_n_1` has its own, all from one original.

Exact retraining and doing nothing take part, and the agreement is given again without these two, which any sound
setup tells apart. Models are kept, as margins, in the home: a run that was stopped goes on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: one core a process
# Run as a script, this file's own folder comes first on the path and its audit.py would hide the package `audit`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import argparse  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from audit.proof.statement import json_ready  # noqa: E402
from audit.studies.comparison import ANCHORS  # noqa: E402
from audit.studies.experiments import Experiments, Setup, agreement, run_experiments  # noqa: E402
from service.context import Context  # noqa: E402
from service.settings import Settings  # noqa: E402
from service.studies.experiments import Experiment, draw  # noqa: E402
from service.studies.forget_setup import set_stage  # noqa: E402
from service.training.jobs import release_processes  # noqa: E402
from unlearning.devices import describe_device  # noqa: E402
from unlearning.faces.sources import att  # noqa: E402
from unlearning.methods import settings_for, tuned_record  # noqa: E402
from unlearning.recipes import RECIPES  # noqa: E402

METHODS = ("finetune", "neggrad_plus", "kookmin", "seif", "random_mask", "dilute")


@dataclass(frozen=True)
class Sizes:
    """Models a side in every experiment; experiments of `full`; the pool of the reuse kinds, and draws from it."""

    a_side: int = 16
    experiments: int = 6
    pool: int = 64
    draws: int = 20


QUICK = Sizes(a_side=8, experiments=2, pool=16, draws=4)


def scored(
    context: Context, setup: Setup, methods: tuple[str, ...], person: str, sizes: Sizes
) -> dict[str, Experiments]:
    """By name, the experiments of every method and anchor under one setup."""
    full = setup == "full"
    asked = Experiment(
        methods, (person,), setup=setup, n_models=sizes.a_side if full else sizes.pool, n_experiments=sizes.experiments
    )
    stage = set_stage(context, asked.people)
    retrained, candidates = draw(context, asked, stage, tell(setup))
    return {
        name: run_experiments(
            setup,
            of.pool,
            retrained.pool,
            seed=0,
            n_experiments=sizes.experiments if full else sizes.draws,
            n_models=sizes.a_side,
        )
        for name, of in candidates.items()
    }


def tell(what: str) -> Callable[[int, int], None]:
    """Progress in a line every tenth of the way."""
    said = [-1]

    def on_progress(done: int, wanted: int) -> None:
        if (tenth := 10 * done // wanted) > said[0]:
            said[0] = tenth
            print(f"  {what}: {done}/{wanted} models", flush=True)

    return on_progress


def compare(found: dict[Setup, dict[str, Experiments]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Kendall's τ of each two setups over some of the methods."""
    rows = []
    for one, other in itertools.combinations(found, 2):
        tau = agreement(
            {name: found[one][name].scores for name in names},
            {name: found[other][name].scores for name in names},
            seed=0,
        ).tau
        rows.append(
            {"setups": [one, other], "n_methods": len(names), "tau": tau.value, "interval": [tau.low, tau.high]}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help=f"with commas; default {','.join(METHODS)}")
    parser.add_argument("--person", default="s31", help="who is forgotten; default s31")
    parser.add_argument("--quick", action="store_true", help="eight models a side: shows that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--home", type=Path, metavar="FOLDER", help="where faces and banks lie; default a temporary one"
    )
    options = parser.parse_args()
    methods, sizes = tuple(options.methods.split(",")), QUICK if options.quick else Sizes()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        home = options.home or Path(temporary)
        settings = Settings(home=home, recipe="att_small", device="cpu", database_url="")
        if not (settings.data_folder / "metadata.csv").exists():
            home.mkdir(parents=True, exist_ok=True)
            att.write_folder(att.find_or_download_wheel(home), settings.data_folder)
        context = Context.open(settings)
        machine = (
            f"{describe_device(torch.device('cpu'))}, {os.cpu_count()} cores, {settings.jobs or 'as many'} processes, "
            f"torch {torch.__version__}, {platform.system()}"
        )
        print(f"machine: {machine}; load {os.getloadavg()[0]:.1f}")
        setups: tuple[Setup, ...] = ("reuse_n_1", "reuse_n_n", "full")
        found = {setup: scored(context, setup, methods, options.person, sizes) for setup in setups}
        release_processes()
        context.engine.dispose()

    recipe = RECIPES["att_small"]
    order = sorted(found["full"], key=lambda name: -found["full"][name].score.value)
    print(f"score with {sizes.a_side} models a side; mean and 95 % (of the mean for full, of one experiment for reuse)")
    for name in order:
        figures = ((setup, found[setup][name].score) for setup in setups)
        scores = (f"{setup} {score.value:.3f} ({score.low:.3f} to {score.high:.3f})" for setup, score in figures)
        print(f"  {name:14} {'   '.join(scores)}")
    agreements = compare(found, tuple(order)) + compare(found, tuple(name for name in order if name not in ANCHORS))
    for row in agreements:
        low, high = row["interval"]
        over = f"{' and '.join(row['setups']):24} over {row['n_methods']} methods"
        print(f"τ of {over}: {row['tau']:.2f} ({low:.2f} to {high:.2f})")
    if options.json:
        result = {
            "machine": machine,
            "person": options.person,
            "sizes": vars(sizes),
            "settings": {
                name: {"tuned": bool(tuned_record(name, recipe)), **settings_for(name, recipe).to_dict()}
                for name in methods
            },
            "experiments": found,
            "agreements": agreements,
        }
        options.json.write_text(json.dumps(json_ready(result), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
