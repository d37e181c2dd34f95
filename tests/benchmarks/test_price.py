"""The price benchmark's own arithmetic: nothing that ran is left out, and no price is made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loads.prices import (
    Costs,
    Unit,
    banks_expected,
    first_year,
    least_that_pays,
    line_chart,
    stream_of,
    unit_at,
)
from benchmarks.loads.streams import Kept

ROOT = Path(__file__).resolve().parents[2]

BURN = """
import os, sys, time
def burn(seconds):
    while time.process_time() < seconds:
        sum(range(1000))
"""
A_TREE = (  # a child that ends while its parent goes on, which has burnt itself
    BURN
    + """
import subprocess
subprocess.run([sys.executable, "-c", sys.argv[1] + "burn(0.4)"], check=True)
burn(0.2)
open(sys.argv[2], "w").close()
time.sleep(60)
"""
)
AN_ORPHAN = (  # a child that outlives the program that started it
    BURN
    + """
import subprocess
subprocess.Popen([sys.executable, "-c", sys.argv[1] + "burn(0.5)"])
"""
)
ACCOUNTS = """
import json, os, sys, time
from pathlib import Path
from benchmarks.loads.processor import Account
burn, tree, orphan, done = sys.argv[1:]
account, other = Account(), Account()
env = dict(os.environ)
account.start([sys.executable, "-c", tree, burn, done], cwd=Path.cwd(), env=env, log=Path(done + ".log"))
while not Path(done).exists():
    account.seconds()
    time.sleep(0.01)
first, alive = account.seconds(), account.alive()
account.run([sys.executable, "-c", orphan, burn], cwd=Path.cwd(), env=env)
second = account.seconds()
try:
    account.run([sys.executable, "-c", "print('so'); raise SystemExit(3)"], cwd=Path.cwd(), env=env)
except RuntimeError as error:
    said = str(error)
account.stop()
ended = account.seconds()
print(json.dumps({"first": first, "alive": alive, "second": second, "said": said, "ended": ended,
                  "other": other.seconds()}))
"""


def test_an_account_counts_children_that_ended_and_orphans(tmp_path: Path) -> None:
    """In a process of its own, since an account takes in every orphan of the process that keeps it."""
    arguments = [BURN, A_TREE, AN_ORPHAN, str(tmp_path / "done")]
    done = subprocess.run(
        [sys.executable, "-c", ACCOUNTS, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True, timeout=240,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["alive"]
    assert found["first"] >= 0.55  # of the child that ended, and of its parent; the kernel tells whole hundredths
    assert found["second"] - found["first"] >= 0.45  # of the orphan
    assert found["ended"] >= found["second"]
    assert found["other"] == 0
    assert "Expected status 0" in found["said"]
    assert found["said"].endswith("got 3:\nso\n")


def erasure(seconds: float, **more: Any) -> dict[str, Any]:
    return {"request_seconds": seconds, "state": "completed", "method": "retrain", **more}


def test_a_measured_stream_is_the_sum_of_its_parts() -> None:
    found = [erasure(5.0, renewal_seconds=1.0), erasure(7.0, renewal_seconds=3.0)]
    stream = stream_of(found, ahead=100.0, n=2)
    assert stream.everything == pytest.approx(100 + 5 + 7 + 1 + 3)
    assert (stream.request, stream.renewal, stream.references) == (6.0, 2.0, 0.0)
    assert stream.methods == {"retrain": 2}
    assert stream.for_each == stream.everything / 2


def test_an_erasure_that_needs_a_human_is_paid_for_by_the_others() -> None:
    refused = {"request_seconds": 9.0, "state": "needs_attention"}
    stream = stream_of([erasure(5.0), refused], ahead=6.0, n=2)
    assert stream.for_each == stream.everything == 20.0
    assert stream.methods == {"retrain": 1, "needs_attention": 1}


def test_references_trained_at_a_request_are_told_apart() -> None:
    with_references = {"unlearning: reference models": [50.0, 80.0], "auditing": [4.0, 9.0]}
    found = [erasure(60.0, phases=with_references), erasure(8.0, phases={"auditing": [4.0, 9.0]})]
    stream = stream_of(found, ahead=0.0, n=2)
    assert stream.judged == pytest.approx((10.0 + 8.0) / 2)
    assert stream.median_request == 8.0
    assert stream_of(found[:1], ahead=0.0, n=2).median_request == pytest.approx(10.0)  # nothing is counted twice


def test_what_an_idle_service_takes_is_no_part_of_a_price() -> None:
    idle = {"idle_seconds": 1.0, "idle_wall_seconds": 10.0}
    phases = {"unlearning: reference models": [50.0, 100.0]}
    slow = erasure(70.0, wall_seconds=200.0, renewal_seconds=9.0, renewal_wall_seconds=40.0, phases=phases, **idle)
    stream = stream_of([slow], ahead=0.0, n=1)
    assert stream.idle == 0.1
    assert (stream.request, stream.renewal, stream.references) == pytest.approx((50.0, 5.0, 40.0))
    assert stream.everything == pytest.approx(55.0)


def test_an_interrupted_erasure_is_left_out_and_counted() -> None:
    stream = stream_of([erasure(5.0), {"interrupted": True}, erasure(7.0)], ahead=0.0, n=3)
    assert (stream.n_measured, stream.n_interrupted, stream.request) == (2, 1, 6.0)
    assert stream.everything == pytest.approx(3 * 6.0)


def test_the_rest_of_a_stream_asks_for_fewer_new_banks() -> None:
    phases = {"unlearning: reference models": [50.0, 60.0]}
    stream = stream_of([erasure(60.0, phases=phases)], ahead=0.0, n=3)
    assert stream.everything == pytest.approx(60 + 2 * 10 + 50 * banks_expected(2, n_built=1))
    assert banks_expected(2, n_built=1) == pytest.approx(0.95 + 0.95 - 0.95 / 20)


def test_units_between_sizes_are_on_a_line_and_say_so() -> None:
    units = {100: Unit(3.0, 1.0, measured=True), 300: Unit(5.0, 3.0, measured=True)}
    assert unit_at(100, units) == units[100]
    assert unit_at(1000, units) == Unit(12.0, 10.0, measured=False)


def test_a_first_year_against_counting_erasure_by_erasure() -> None:
    costs, unit, n_subjects = Costs(fixed=3.0, trainings=1.0), Unit(4.0, 2.0, measured=True), 400
    for n_erasures in (1, 14, 15, 60, 61, 200):
        trainings, gone, gone_of_originals = 20.0 * 8 + 16, 0, 0
        for _ in range(n_erasures):
            trainings += 1
            gone, gone_of_originals = gone + 1, gone_of_originals + 1
            if gone == 15:  # one more would be above 5 % of 304
                trainings, gone = trainings + 20 * 8, 0
            if gone_of_originals == 80:
                trainings, gone_of_originals = trainings + 16, 0
        expected = (trainings * 2.0 + n_erasures * 3.0) / 4.0 / n_erasures
        assert first_year(costs, n_erasures, n_subjects, unit) == pytest.approx(expected)


def test_exact_retraining_never_costs_less_than_itself() -> None:
    unit = Unit(100.0, 100.0, measured=False)
    assert least_that_pays(Costs(fixed=0.0, trainings=1.0), 10_000, unit) is None
    least = least_that_pays(Costs(fixed=0.0, trainings=0.1), 10_000, unit, qualification=270)
    assert least is not None
    assert first_year(Costs(fixed=0.0, trainings=0.1), least, 10_000, unit) + 270 / least <= 1
    assert first_year(Costs(fixed=0.0, trainings=0.1), least - 1, 10_000, unit) + 270 / (least - 1) > 1


def test_the_drawing_names_its_lines_and_what_was_not_measured() -> None:
    drawing = line_chart([("a", "#000", [(1.0, 10.0), (10.0, 1.0)]), ("b", "#111", [(1.0, 1.0)])], unmeasured=["b"])
    assert drawing.count("stroke-dasharray") == 1
    assert ">a</text>" in drawing
    assert "a: 10 at 1, 1 at 10" in drawing


def test_figures_are_kept_under_their_names(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    assert kept.read("by need-01") is None
    kept.write("by need-01", {"request_seconds": 1.5})
    assert Kept(tmp_path).read("by need-01") == {"request_seconds": 1.5}
