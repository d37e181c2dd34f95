"""What erasures cost, counted whole: a stream of them by this build, by a former one, and by plain retraining.

    python benchmarks/price.py [--quick] [--json FILE] [--folder FOLDER] [--erasures 20] [--erasures-of former=5]

The same people of one set of drawn faces ask one after another, and each way erases them in turn:

* `retraining`: a process that trains the recipe once on whoever is left, and ends. No evidence, no service.
* `present`: this build, policy `standard`, all references built ahead (`expunge references build`) and renewed after
  each erasure by what the worker runs while it is idle (`expunge references refresh`).
* `by need`: the same with nothing ahead: a block's references are trained when somebody of it first asks.
* `spares`: like `present` with policy `spare`: one more model for each block ahead, and the spares that remember
  whoever was erased are renewed with the references. A month in which several ask is arithmetic from these prices:
  the first of them takes a spare, and destroys the others' until the month's end.
* `former`: the build of an earlier commit (`benchmarks.loads.streams.FORMER`), from an archive of it, in its cheapest
  way: references only for blocks asked for, none renewed ahead of a request.
* with `--with-setting NAME=VALUE`: one more row, `--row`, of this build or of the checkout `--code` with these
  variables of the environment; otherwise like `present`.

Everything is counted in processor seconds, user and system, of all processes of a way, ended ones included
(`benchmarks.loads.processor`): of a request from its 202 to `completed`, of the renewal after it, and of what was built
ahead. What others do on the machine does not count; it only takes caches. One *training* is the median of
`retraining`'s processes. Each service has one serving process. Training runs at the priority of any other program
(`EXPUNGE_TRAINING_PRIORITY=normal`), and in the former build, whose training processes would give way to every other
program, in the worker itself (`EXPUNGE_JOBS=1`), which starts no processes and so costs it least.

With `--folder` every erasure's figures are kept, and the benchmark goes on where it was ended. An erasure that was
under way then is completed, but its figures are lost: it is left out of means, and counted.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a script, this file's own folder comes first on the path and its audit.py would hide the package `audit`.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "benchmarks")]

import argparse  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import signal  # noqa: E402
import tempfile  # noqa: E402
from dataclasses import asdict, replace  # noqa: E402
from statistics import median  # noqa: E402
from typing import Any  # noqa: E402

from benchmarks.loads.figures import machine, verdict  # noqa: E402
from benchmarks.loads.prices import (  # noqa: E402
    ORIGINALS,
    REFERENCES,
    REFERENCES_OF_FORMER,
    Costs,
    Stream,
    Unit,
    first_year,
    least_that_pays,
    line_chart,
    stream_of,
    unit_at,
)
from benchmarks.loads.streams import Kept, Retraining, Way, erased_by, former_code, measure  # noqa: E402
from unlearning.faces import read_metadata  # noqa: E402
from unlearning.faces.sources import synthetic  # noqa: E402

SIZES = (100, 1600)
"""Numbers of subjects at which a training is measured, beside the stream's."""
EXTRAPOLATED = 10_000
A_YEAR = (1, 3, 10, 30, 100, 300, 1000)
SHARE_OF_A_FAST_METHOD, QUALIFICATION = 0.12, 295
"""Of a training; and trainings, see docs/qualification.md. For the arithmetic of a method that passed it."""
COLOURS = ("#1f6fae", "#c4560b", "#2c7a4b", "#7b4fa3", "#6a7077", "#a3263a", "#0f7b8a")


def units(kept: Kept, folder: Path, sizes: tuple[int, ...], n_images: int, n_runs: int) -> dict[int, Unit]:
    """What a training costs at these numbers of subjects, medians."""
    found = {}
    for size in sizes:
        name = f"unit-{size}"
        if kept.read(name) is None:
            data = folder / f"data-{size}"
            if not data.exists():
                synthetic.write_folder(data, n_subjects=size, images_per_subject=n_images)
            retraining = Retraining(folder / f"retraining-{size}", data)
            runs = [retraining.erase([]) for _ in range(n_runs + 1)][1:]  # the first also decodes the images
            kept.write(name, {"runs": runs})
        found[size] = unit_of((kept.read(name) or {})["runs"])
    return found


def unit_of(runs: list[dict[str, Any]]) -> Unit:
    """The median of plain retrainings."""
    return Unit(
        median(run["request_seconds"] for run in runs), median(run["training_seconds"] for run in runs), measured=True
    )


def tell_streams(streams: dict[str, Stream], unit: Unit) -> None:
    """The table of the ways."""
    print(
        f"One training: {unit.process:.2f} processor seconds, a process that trains once and ends; "
        f"{unit.training:.2f} of them in the training itself."
    )
    print(f"\n{'in trainings':24s}{'ahead':>8s}{'a request':>11s}{'references':>12s}{'renewal':>9s}{'all':>8s}", end="")
    print(f"{'each':>7s}  erased, by")
    for name, one in streams.items():
        figures = (one.ahead, one.request, one.references, one.renewal, one.everything, one.for_each)
        ahead, request, references, renewal, everything, each = (seconds / unit.process for seconds in figures)
        by = ", ".join(f"{method} {n}" for method, n in one.methods.items())
        mark = "*" if one.n_measured < one.n else ""
        print(
            f"{name:24s}{ahead:8.1f}{request:11.2f}{references:12.2f}{renewal:9.2f}{everything:7.0f}{mark or ' '}"
            f"{each:7.2f}  {one.n_completed} of {one.n_measured}, {by}"
        )
    for name, one in streams.items():
        if one.idle:
            print(f"{name}: {one.idle * 3600:.0f} processor seconds an hour with nothing to do, not counted above.")
        if one.n_measured < one.n:
            print(
                f"* {name}: {one.n_measured} erasures were measured ({one.n_interrupted} were interrupted); "
                "the rest is extrapolated."
            )


def tell_targets(streams: dict[str, Stream], unit: Unit) -> dict[str, float]:
    """The targets, met or not; gives the figures."""
    found: dict[str, float] = {}

    def tell(what: str, value: float, most: float) -> None:
        found[what] = value
        print(f"  {what:70s} {value:8.3f}   {verdict(value, most=most)}")

    former = streams.get("former")
    for name in [name for name in streams if name not in {"retraining", "former"}]:
        one = streams[name]
        tell(f"{name}: at the request, references there, trainings", one.judged / unit.process, 0.25)
        if former is not None:
            tell(f"{name}: at the request, over the former build's", one.judged / former.request, 1 / 40)
            tell(f"{name}: the same, had the former build its references there", one.judged / former.judged, 1 / 40)
            tell(
                f"{name}: everything over the stream, over the former build's",
                one.everything / former.everything,
                1 / 8,
            )
    return found


def costs_of(streams: dict[str, Stream], unit: Unit) -> dict[str, Costs]:
    """Unit prices of the builds, for years of other lengths and other numbers of subjects."""
    costs = {}
    if "present" in streams:
        one = streams["present"]
        reference = one.ahead / unit.training / (20 * REFERENCES + ORIGINALS)
        costs["present"] = Costs(one.median_request - unit.training + one.look, 1.0, reference)
    if "by need" in streams:
        reference = costs["present"].reference if "present" in costs else 1.0
        fixed = streams["by need"].median_request - unit.training
        costs["by need"] = Costs(fixed, 1.0, reference, originals=0, ahead=False)
    if "former" in streams:
        trainings = streams["former"].judged / unit.training
        costs["former"] = Costs(0.0, trainings, 1.0, REFERENCES_OF_FORMER, originals=0, ahead=False)
    return costs


def tell_years(costs: dict[str, Costs], measured: dict[int, Unit], n_subjects: int) -> str:
    """The table of first years, and its drawing."""
    lines, dashed = [], []
    print(f"\nTrainings for each erasure in a first year, everything counted{'erasures:':>12s}", end="")
    print("".join(f"{n:>9,}" for n in A_YEAR))
    sizes = {"present": [*sorted(measured), EXTRAPOLATED], "by need": [n_subjects], "former": [n_subjects]}
    for name, of_way in costs.items():
        for size in sizes[name]:
            unit = unit_at(size, measured)
            years = [n for n in A_YEAR if n <= size / 2]
            points = [(float(n), first_year(of_way, n, size, unit)) for n in years]
            label = f"{name}, {size:,} subjects"
            lines.append((label, COLOURS[len(lines)], points))
            if not unit.measured:
                dashed.append(label)
            shown = "".join(f"{price:9.2f}" for _, price in points)
            print(f"  {label:32s}{'' if unit.measured else 'a training extrapolated':41s}{shown}")
    lines.append(("plain retraining", "#1d2329", [(1.0, 1.0), (1000.0, 1.0)]))
    return line_chart(lines, unmeasured=dashed)


def tell_break_even(streams: dict[str, Stream], costs: dict[str, Costs], unit: Unit) -> None:
    """When what pays, in sentences."""
    if "present" not in costs:
        return
    present = costs["present"]
    print("\nBreak-even with plain retraining (arithmetic from the prices above):")
    at_request = streams["present"].judged / unit.process
    print(
        f"  present: a request costs {at_request:.2f} trainings, and no less than the 1 of exact retraining; "
        "with its references it costs more than plain retraining at any number of erasures."
    )
    fixed = present.fixed
    print(
        f"  Beside trainings an erasure costs {fixed:.1f} processor seconds: less than a quarter of a training where "
        f"one takes {4 * fixed:.0f} s, less than a tenth where it takes {10 * fixed:.0f} s."
    )
    fast = replace(present, trainings=SHARE_OF_A_FAST_METHOD)
    for length in (unit.training, 600.0):
        for size in (400, 1600, EXTRAPOLATED, 10 * EXTRAPOLATED):
            long = Unit(length + unit.process - unit.training, length, measured=False)
            least = least_that_pays(fast, size, long, qualification=QUALIFICATION)
            said = f"from {least:,} erasures a year on" if least else "never"
            print(
                f"  a qualified method of {SHARE_OF_A_FAST_METHOD:.0%} of a training, {QUALIFICATION} trainings of "
                f"qualification, {size:,} subjects, trainings of {length:,.0f} s: {said}"
            )


def run(options: argparse.Namespace, folder: Path) -> None:
    """Measure what is not there yet, and tell everything."""
    n_erasures = options.erasures or (2 if options.quick else 20)
    n_subjects = options.subjects or (40 if options.quick else 400)
    kept, data = Kept(folder / "figures"), folder / "data"
    if kept.read("set") is None:
        synthetic.write_folder(data, n_subjects=n_subjects, images_per_subject=options.images)
        kept.write("set", {"n_subjects": n_subjects, "images": options.images})
    known = sorted({row.user_id for row in read_metadata(data) if row.split == "train"})
    people = random.Random(0).sample(known, n_erasures)
    ways = [replace(way, subjects=tuple(people)) if options.quick else way for way in ways_of(options, folder)]
    fewer = {name: int(n) for name, n in (each.split("=") for each in options.erasures_of)}
    n_of = {way.name: min(n_erasures, fewer.get(way.name, n_erasures)) for way in ways}
    measure(ways, people, folder, kept, n_of, data=data)
    found = {way.name: erased_by(way, n_of[way.name], kept) for way in ways}
    unit = unit_of(found["retraining"])
    ahead = {way.name: (kept.read(f"{way.name}-ahead") or {"seconds": 0.0})["seconds"] for way in ways}
    streams = {name: stream_of(each, ahead=ahead[name], n=n_erasures) for name, each in found.items()}
    print(f"\n{n_erasures} erasures, one after another, of {n_subjects} drawn subjects; {machine()}")
    tell_streams(streams, unit)
    print("\nTargets:")
    targets = tell_targets(streams, unit)
    others = () if options.quick else SIZES
    measured = units(kept, folder, others, options.images, 3) | {n_subjects: unit}
    costs = costs_of(streams, unit)
    if not options.quick:
        drawing = tell_years(costs, measured, n_subjects)
        tell_break_even(streams, costs, unit)
        if options.picture:
            options.picture.write_text(drawing, encoding="utf-8")
    if options.json:
        figures = {
            "machine": machine(), "subjects": n_subjects, "targets": targets, "erasures": found,
            "units": {size: asdict(each) for size, each in measured.items()},
            "streams": {name: asdict(one) for name, one in streams.items()},
            "costs": {name: asdict(one) for name, one in costs.items()},
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def ways_of(options: argparse.Namespace, folder: Path) -> list[Way]:
    """The ways asked for, plain retraining first, since it gives the unit."""
    normal = {"EXPUNGE_TRAINING_PRIORITY": "normal"}
    every = {
        "present": Way("present", ROOT, normal, ahead=True, renew=True),
        "by need": Way("by need", ROOT, normal),
        "spares": Way("spares", ROOT, normal | {"EXPUNGE_POLICY": "spare"}, ahead=True, renew=True),
    }
    chosen = [name for name in options.ways.split(",") if name]
    if "former" in chosen:
        every["former"] = Way("former", former_code(folder), {"EXPUNGE_JOBS": "1"})
    ways = [Way("retraining", None), *(every[name] for name in chosen)]
    if options.with_setting:
        further = dict(each.split("=", 1) for each in options.with_setting)
        name = options.row or ", ".join(options.with_setting)
        ways.append(Way(name, options.code.resolve(), normal | further, ahead=True, renew=True))
    return ways


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two erasures of 40 subjects, references ahead for these two alone, and no years",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--folder", type=Path, help="where homes and figures are kept; default a temporary one")
    parser.add_argument("--erasures", type=int, help="default 20")
    parser.add_argument(
        "--erasures-of",
        action="append",
        default=[],
        metavar="WAY=N",
        help="fewer; the rest is extrapolated, and marked",
    )
    parser.add_argument("--subjects", type=int, help="default 400")
    parser.add_argument("--images", type=int, default=2, help="of each subject")
    parser.add_argument("--ways", default="former,present,by need,spares", help="beside retraining; with commas")
    parser.add_argument("--with-setting", action="append", default=[], metavar="NAME=VALUE", help="for a further row")
    parser.add_argument("--row", default="", help="its name; default: its settings")
    parser.add_argument("--code", type=Path, default=ROOT, help="checkout that it is run from; default this one")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the drawing to this SVG file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    with tempfile.TemporaryDirectory(prefix="price-") as temporary:
        run(options, (options.folder or Path(temporary)).resolve())


if __name__ == "__main__":
    main()
