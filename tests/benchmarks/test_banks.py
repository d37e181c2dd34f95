"""The published banks: what docs/banks.md says of the file is so, and a figure of the gate comes out of it."""

from __future__ import annotations

import numpy as np
import pytest

from audit.statistics.gate import gate
from audit.statistics.spread import pooled_spread
from benchmarks.banks import FILE, IN, OUT, described, judge, read, show
from unlearning.faces.views import VIEWS


@pytest.fixture(scope="module")
def att():
    return read(FILE, "att")


def test_the_file_describes_itself() -> None:
    about = described(FILE)
    assert about["views"] == list(VIEWS)
    assert {name: len(each["subjects"]) for name, each in about["sets"].items()} == {"att": 32, "drawn": 50}
    assert sum(each["tuned_on"] for each in about["sets"]["att"]["subjects"].values()) == 4


def test_every_subject_has_models_with_and_without_them(att) -> None:
    assert {banks[OUT].shape for banks in att.values()} == {(66, len(VIEWS), 10)}
    assert {banks[IN].shape for banks in att.values()} == {(50, len(VIEWS), 10)}
    assert all(np.isfinite(bank).all() for banks in att.values() for bank in banks.values())


def test_the_gates_power_comes_out_of_the_file(att) -> None:
    pooled = pooled_spread([banks[OUT][:8] for name, banks in att.items() if name != "s31"])
    references = att["s31"][OUT][:8]
    passed = [gate(original, references, pooled=pooled).passed for original in att["s31"][IN]]
    assert np.mean(passed) < 0.05
    retrained = [gate(model, references, pooled=pooled).passed for model in att["s31"][OUT][8:]]
    assert np.mean(retrained) > 0.8


def test_a_method_in_the_file_is_judged_beside_retraining_and_doing_nothing(att, capsys) -> None:
    some = {name: att[name] for name in ("s31", "s6", "s19", "s7")}
    found = list(judge(some, dict.fromkeys(some, 0)))
    of_s31 = {kind: figures for subject, kind, _, figures in found if subject == "s31"}
    assert min(of_s31["retrained"][0], of_s31["remix"][0]) > of_s31["nothing done"][0]
    assert abs(of_s31["retrained"][1]) < of_s31["remix"][1] < of_s31["nothing done"][1]
    show("att", found)
    assert "remix" in capsys.readouterr().out
