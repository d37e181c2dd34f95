"""What a run has cost so far, counted whole, in trainings.

One *training* is the median time of the trainings in the bank that judges: the production recipe on this machine. What
a request caused itself are its candidates, the runs of methods drawn beside them, and the references and oracles that
were not there when it came. What was paid ahead are the banks and spares that are there now, for whoever asks; it
stands beside the number of erasures so far. What is to be paid afterwards are the spares that the erasure uses up or
destroys. Scoring, auditing and the swap are not trainings and are not counted, nor is a run of a method that diverged.

Tested in `tests/service/erasure/test_candidates.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlmodel import func, select

from service.banks import spares
from service.banks.build import BankPlan
from service.banks.store import Bank, BankStore
from service.erasure.workspace import Workspace
from service.requests.runs import requests_of
from service.store.engine import reading
from service.store.tables import ErasureRequest

CANDIDATES, RUNS, REFERENCES, ORACLES = PURPOSES = ("candidates", "runs of methods", "references", "oracles")
_MISSING = "missing"


def note_missing(work: Workspace, plan: BankPlan, n_models: int, *, first_seed: int = 0) -> None:
    """Keep in the run's folder which models of a bank were missing when the run first asked for it."""
    noted = work.folder.read(_MISSING) or {}
    if plan.key.digest not in noted:
        store = BankStore(work.context.settings.banks_folder)
        noted[plan.key.digest] = store.missing_seeds(plan.key, n_models, first=first_seed)
        work.folder.write(_MISSING, noted)


def price(work: Workspace, step: int, bank: Bank, oracles: Bank | None, *, used: str = "") -> dict[str, Any]:
    """The price after a step of the ladder, as plain values.

    Args:
        used: digest of the spare that the step's candidate began with, if it began with one.
        bank: that judges the run.
        oracles: of the run, if its methods read any.

    Returns:
        training_seconds: the unit; trainings: caused by the run, by purpose; total: their sum; ahead: trainings of the
        banks and spares that are there now, without those the run caused; afterwards: trainings of the spares that the
        step used or that remember the run's subjects, which are to be trained anew; erasures_before: requests completed
        as erased before.
    """
    unit = float(np.median(bank.seconds))
    made = [work.folder.read(f"step-{i}") for i in range(step + 1)]
    seconds = {
        CANDIDATES: sum(outcome["seconds"] for outcome in made if outcome),
        RUNS: sum(bank.cost_seconds for bank in BankStore(work.folder.unlearned()).status(now=work.context.now())),
        REFERENCES: _trained_for(work, bank),
        ORACLES: _trained_for(work, oracles) if oracles else 0.0,
    }
    there = BankStore(work.context.settings.banks_folder).status(now=work.context.now())
    ahead = sum(bank.cost_seconds for bank in there) - seconds[REFERENCES] - seconds[ORACLES]
    with reading(work.context.engine) as s:
        hashes = {request.subject_hash for request in requests_of(s, work.run_id)}
        query = select(func.count()).select_from(ErasureRequest).where(ErasureRequest.outcome == "erased")
        n_erased = int(s.exec(query).one())
    trainings = {purpose: spent / unit for purpose, spent in seconds.items() if spent}
    return {
        "training_seconds": unit,
        "trainings": trainings,
        "total": sum(trainings.values()),
        "ahead": (max(0.0, ahead) + spares.cost_seconds(work.context)) / unit,
        "afterwards": spares.renewal_seconds(work.context, used, hashes) / unit,
        "erasures_before": n_erased,
    }


def rows(priced: dict[str, Any]) -> dict[str, str]:
    """The price as a report's table shows it."""
    parts = ", ".join(f"{purpose} {spent:.2f}" for purpose, spent in priced["trainings"].items()) or "nothing"
    n_before, after = priced["erasures_before"], priced.get("afterwards", 0.0)
    before = "no erasure was" if not n_before else "1 erasure was" if n_before == 1 else f"{n_before} erasures were"
    return {
        "Caused by the request, in trainings": f"{priced['total']:.2f} ({parts})",
        "Paid ahead, in trainings": f"{priced['ahead']:.0f} in banks and spares that are there now; {before} completed "
        "before",
        **({"To be paid afterwards, in trainings": f"{after:.0f} for spares to be trained anew"} if after else {}),
        "One training": f"{priced['training_seconds']:.2f} s",
    }


def _trained_for(work: Workspace, bank: Bank) -> float:
    """Seconds of the bank's models that were missing when the run first asked for it."""
    missing = (work.folder.read(_MISSING) or {}).get(bank.key.digest, [])
    return float(bank.seconds[np.isin(bank.seeds, missing)].sum())
