from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from audit.evaluation import Evidence, evaluate
from service.context import Context
from service.erasure import evidence
from service.settings import Settings
from service.store.engine import session
from service.store.tables import Run
from tests.service import tiny
from tests.service.conftest import Clock

N_MODELS, N_PHOTOGRAPHS = 16, 7


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """Of an approximate method, so that everything is measured."""
    rng = np.random.default_rng(0)
    accuracies = {
        f"{set_}_accuracy_{which}": rng.uniform(0.8, 1, N_MODELS)
        for set_ in ("retain", "test")
        for which in ("retrained", "unlearned")
    } | {f"{set_}_accuracy_{which}": 0.9 for set_ in ("retain", "test") for which in ("deployed", "original")}
    retrained, unlearned = rng.normal(size=(2, N_MODELS, N_PHOTOGRAPHS))
    measured = Evidence(
        retrained=retrained, unlearned=unlearned, deployed=retrained[0], original=retrained[0] + 1, cost_share=0.1,
        **accuracies,
    )  # fmt: skip
    return evaluate(measured, tiny.POLICY, rung=0, seed=0).to_dict()


def lists(value: Any, place: str = "") -> Iterator[tuple[str, int]]:
    """Every list in it, with its place and length, those in lists too."""
    for name, part in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(part, dict | list):
            if isinstance(part, list):
                yield f"{place}{name}", len(part)
            yield from lists(part, f"{place}{name}.")


def test_by_default_all_figures_are_kept(figures: dict[str, Any], settings: Settings) -> None:
    assert evidence.kept(figures, settings) == figures
    assert N_PHOTOGRAPHS in {length for _, length in lists(figures)}


def test_else_none_is_of_a_single_photograph(figures: dict[str, Any], settings: Settings) -> None:
    left = evidence.kept(figures, settings.model_copy(update={"keep_evidence": False}))
    assert [place for place, length in lists(left) if length == N_PHOTOGRAPHS] == []
    assert left["verdict"] == figures["verdict"]
    assert left["forgetting"] == figures["forgetting"]


@pytest.mark.parametrize("keep", [True, False])
def test_reports_stay_or_go_with_the_purge(settings: Settings, keep: bool) -> None:
    report = settings.reports_folder / "run" / "step-0.html"
    report.parent.mkdir(parents=True)
    report.write_text("figures")
    for _ in range(2):
        evidence.forget_reports(settings.model_copy(update={"keep_evidence": keep}))
    assert report.exists() is keep


def test_reports_of_old_runs_are_destroyed_when_the_setting_says_so(tiny_context: Context, clock: Clock) -> None:
    reports = tiny_context.settings.reports_folder
    ended, open_run = "11111111-aaaa", "22222222-bbbb"
    with session(tiny_context.engine) as s:
        for run_id, finished_at in ((ended, tiny_context.now()), (open_run, None)):
            s.add(
                Run(
                    id=run_id, line="default", stage="completed", base_digest="", policy_digest="", seed=0,
                    created_at=tiny_context.now(), updated_at=tiny_context.now(), finished_at=finished_at,
                )
            )  # fmt: skip
        s.commit()
    for name in (ended, open_run, "training", "qualifications"):
        (reports / name).mkdir(parents=True, exist_ok=True)
        (reports / name / "step-0.html").write_text("x")
    tidy = replace(tiny_context, settings=tiny_context.settings.model_copy(update={"report_days": 30.0}))
    clock.advance(days=29)
    assert evidence.forget_old_reports(tidy) == 0
    clock.advance(days=1)
    assert evidence.forget_old_reports(tiny_context) == 0  # by default they stay
    assert evidence.forget_old_reports(tidy) == 1
    assert sorted(path.name for path in reports.iterdir()) == [open_run, "qualifications", "training"]
