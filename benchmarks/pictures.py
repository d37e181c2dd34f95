"""The pictures of `docs/forgetting.md`, made from models and not by hand.

    python benchmarks/pictures.py [--out docs/images] [--person s31] [--models 64] [--quick] [--home FOLDER]

Trains models without the person, originals, and runs of `dilute` on the AT&T faces, and writes four SVG files:
margins, mean ranks, ε image by image, and what F makes of two banks that differ by a known amount.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: one core a process
# Run as a script, this file's own folder comes first on the path and its audit.py would hide the package `audit`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import argparse  # noqa: E402
import tempfile  # noqa: E402

import numpy as np  # noqa: E402

from audit import forgetting_quality  # noqa: E402
from audit.report import drawings  # noqa: E402
from audit.statistics.epsilon import epsilons  # noqa: E402
from audit.statistics.exchangeability import exchangeability  # noqa: E402
from audit.studies.comparison import DO_NOTHING  # noqa: E402
from service.context import Context  # noqa: E402
from service.settings import Settings  # noqa: E402
from service.studies.experiments import Experiment, draw_candidates, draw_references  # noqa: E402
from service.studies.forget_setup import set_stage  # noqa: E402
from service.training.jobs import release_processes  # noqa: E402
from unlearning.faces.sources import att  # noqa: E402

METHOD = "dilute"
SHIFTS = (0.0, 0.25, 0.5, 1.0, 2.0)
STYLE = """
text{font:12.5px system-ui,sans-serif;fill:#4c5560}.label{fill:#1d2329}.area,.bar{stroke:none}
.area.retrained,.bar.retrained,.mark.retrained{fill:#1f6fae}.area.unlearned,.bar.unlearned,.mark.unlearned{fill:#c4560b}
.area{fill-opacity:.2}.area.original{fill:none}.bar{fill-opacity:.72}.bar.unlearned{fill-opacity:.55}.mark.original{fill:#6a7077}
.line{fill:none;stroke-width:2}.line.retrained{stroke:#1f6fae}.line.unlearned{stroke:#c4560b}
.line.original{stroke:#6a7077;stroke-dasharray:5 4}.rug.unlearned{stroke:#c4560b;stroke-width:1.6}
.needle{stroke-width:1.6}.needle.original{stroke:#6a7077;stroke-dasharray:5 4}.needle.unlearned{stroke:#c4560b}
.grid{stroke:#dfe3e8}.grid.middle{stroke:#b9c0c8}.baseline{stroke:#6a7077}.paper{fill:#fff}
"""


def standalone(drawing: str) -> str:
    """A drawing of a page as a file of its own: name space, colours, paper."""
    head, rest = drawing.split(">", 1)
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f'{head}><style>{STYLE}</style><rect class="paper" width="100%" height="100%"/>{rest}\n'


def histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Shares of the values in each bucket; what lies beyond is in the last."""
    counts, _ = np.histogram(np.minimum(values[np.isfinite(values)], edges[-1] - 1e-9), edges)
    return counts / max(counts.sum(), 1)


def of_a_person(context: Context, person: str, n_models: int) -> dict[str, str]:
    """Three drawings about the images of one person."""
    stage = set_stage(context, [person])
    references = draw_references(context, stage, 2 * n_models, tell("models trained without the person"))
    experiment = Experiment((METHOD,), (person,), setup="reuse_n_1", n_models=n_models)
    banks = draw_candidates(context, experiment, stage, tell("unlearned models"))
    release_processes()
    first, second = references.margins[:n_models], references.margins[n_models : 2 * n_models]
    unlearned, original = banks[METHOD].margins[1:n_models], banks[DO_NOTHING].margins[0]
    deployed = banks[METHOD].margins[0]
    edges = np.arange(0.0, 5.01, 0.5)
    buckets = [histogram(epsilons(bank, second), edges) for bank in (banks[METHOD].margins[:n_models], first)]
    test = [exchangeability(row, first) for row in (deployed, original)]
    return {
        "margins": drawings.margin_densities(first, unlearned, original, deployed, name="margins"),
        "ranks": drawings.mean_ranks(test[0].reference_mean_ranks, test[0].mean_rank, test[1].mean_rank, name="ranks"),
        "epsilon": drawings.epsilon_histogram(*buckets, edges, name="epsilon"),
    }


def of_known_differences(n_models: int, n_examples: int) -> str:
    """F of banks whose margins differ by a shift given in standard deviations."""
    rng = np.random.default_rng(0)
    figures = []
    for shift in SHIFTS:
        draws = [
            forgetting_quality(rng.normal(shift, 1, (n_models, n_examples)), rng.normal(0, 1, (n_models, n_examples)))
            for _ in range(10)
        ]
        values = np.array([draw.value for draw in draws])
        figures.append((float(values.mean()), float(values.min()), float(values.max())))
    names = [f"shifted by {shift:g} sd" if shift else "no difference at all" for shift in SHIFTS]
    kinds = ["retrained", *["unlearned"] * (len(SHIFTS) - 1)]
    axis = f"F of two banks of {n_models} models; lines: ten draws"
    return drawings.ranked_intervals(names, figures, kinds, band=None, axis=axis, name="shifts")


def tell(what: str) -> object:
    def on_progress(done: int, wanted: int) -> None:
        if done % max(wanted // 10, 1) == 0:
            print(f"  {what}: {done}/{wanted}", flush=True)

    return on_progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the files; default docs/images, with --quick none")
    parser.add_argument("--person", default="s31", help="of the training people")
    parser.add_argument("--models", type=int, default=64, help="of each kind")
    parser.add_argument("--quick", action="store_true", help="eight models of a kind: shows that it runs")
    parser.add_argument("--home", type=Path, help="where faces and banks lie; default a temporary one")
    options = parser.parse_args()
    n_models = 8 if options.quick else options.models
    with tempfile.TemporaryDirectory() as temporary:
        home = options.home or Path(temporary)
        settings = Settings(home=home, recipe="att_small", device="cpu", database_url="")
        if not (settings.data_folder / "metadata.csv").exists():
            att.write_folder(att.find_or_download_wheel(home), settings.data_folder)
        context = Context.open(settings)
        pictures = of_a_person(context, options.person, n_models)
        context.engine.dispose()
    pictures["shifts"] = of_known_differences(64, 10 if options.quick else 100)
    out = options.out or (None if options.quick else Path("docs/images"))
    for name, drawing in pictures.items():
        if out:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"forgetting-{name}.svg").write_text(standalone(drawing), encoding="utf-8")
        print(f"{name}: {len(drawing)} characters" + (f", {out}/forgetting-{name}.svg" if out else ""))


if __name__ == "__main__":
    main()
