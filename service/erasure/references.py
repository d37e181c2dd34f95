"""The reference bank that judges a run, and the oracles that its methods read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from service.banks.build import BankPlan, OnProgress, build_bank, example_ids
from service.banks.oracles import FIRST_SEED as FIRST_ORACLE
from service.banks.oracles import build_oracles, margins_of
from service.banks.originals import FEWEST as FEWEST_ORIGINALS
from service.banks.store import Bank, BankKey, BankStore, Staleness
from service.erasure.plan import as_rows
from service.erasure.price import note_missing
from service.erasure.workspace import Workspace
from service.errors import RunStoppedError
from service.requests.runs import note
from service.training.spec import TrialSpec

FEWEST_POOLED = 4
"""Models of a bank whose spread counts for others."""


def bank_plan(work: Workspace) -> BankPlan:
    """The bank that judges the run, ready to be found or built."""
    bank = work.plan.bank
    retain = as_rows(bank["retain"])
    spec = TrialSpec(
        images=work.images, recipe=work.recipe, retain=retain, scored=as_rows(bank["scored"]), retain_scored=retain,
        test=as_rows(bank["test"]), device=work.context.settings.device,
    )  # fmt: skip
    return BankPlan(
        key=BankKey(**bank["key"]), spec=spec, example_ids=tuple(bank["example_ids"]), tags=tuple(bank["tags"]),
        learned=bank["learned"], tested=bank["tested"], staleness=Staleness(**bank["staleness"]),
        sample=as_rows(bank["sample"]) if bank.get("sample") else None, others=tuple(bank.get("others", ())),
    )  # fmt: skip


def oracle_bank_plan(work: Workspace) -> BankPlan:
    """The oracle bank of a run that has one, ready to be found or built."""
    oracles = work.plan.oracles
    return replace(bank_plan(work), key=BankKey(**oracles["key"]), staleness=Staleness(**oracles["staleness"]))


def gather(work: Workspace) -> Bank:
    """Complete the bank that judges the run and the oracles it needs; gives the bank.

    Whatever was not built ahead is built now. A stale bank cannot be built again: if it is gone or was damaged since
    the plan was made, the run is planned anew.

    Raises:
        RunStoppedError: no new plan can be made.
    """
    policy, context = work.policy, work.context
    store, now = BankStore(context.settings.banks_folder), context.now()
    if not work.plan.obstacle and _is_a_stale_bank_damaged(work, store):
        work.plan_anew()
    if work.plan.obstacle:
        raise RunStoppedError(work.plan.obstacle)
    if work.plan.oracles:
        note_missing(work, oracle_bank_plan(work), work.plan.oracles["n"], first_seed=FIRST_ORACLE)
        build_oracles(
            store, oracle_bank_plan(work), work.plan.oracles["n"], context.settings, noting(work, "oracles"), now=now,
            run_id=work.run_id,
        )  # fmt: skip
    note_missing(work, bank_plan(work), policy.n_models)
    on_progress = noting(work, "reference models", half="unlearning.references")
    return build_bank(
        store, bank_plan(work), policy.n_models, context.settings, on_progress, now=now, run_id=work.run_id
    )


def noting(work: Workspace, what: str, *, half: str = "") -> OnProgress:
    """Progress shown with the run; `half` is the fail point that is passed when half of the models are there.

    From the second report on it says when all will be there, if the rest is as quick as what was done since the first.
    """
    begun: list[tuple[datetime, int]] = []

    def tell(done: int, wanted: int) -> None:
        now, text = work.context.now(), f"{what} {done}/{wanted}"
        if not begun:
            begun.append((now, done))
        since, before = begun[0]
        if before < done < wanted and now > since:
            text += f", all by {now + (now - since) * ((wanted - done) / (done - before)):%d %b %Y, %H:%M} UTC"
        note(work.context, work.run_id, text)
        if half and done == wanted // 2:
            work.context.reached(half)

    return tell


def originals(work: Workspace) -> Bank | None:
    """The bank of models that learned from everybody; none if the plan names none, or it is gone."""
    if not work.plan.originals:
        return None
    store = BankStore(work.context.settings.banks_folder)
    return store.find(BankKey(**work.plan.originals["key"]), n_models=FEWEST_ORIGINALS)


def other_forget_sets(work: Workspace) -> list[NDArray[np.float64]]:
    """Margins of other subjects by the references of their blocks, `(n_models, n_views, n_examples)` each.

    They say how much T varies from model to model, for sets of as many subjects as the run's. Only banks made as the
    run's count, one a block, and none of the blocks that the run's bank is of.
    """
    mine, store = bank_plan(work), BankStore(work.context.settings.banks_folder)
    tag_of = dict(zip(mine.example_ids, mine.tags, strict=True))
    n_subjects = len({tag_of[example] for example in example_ids(work.faces, work.plan.forget)})
    seen, found = set(mine.tags), list[NDArray[np.float64]]()
    for bank in store.made_like(mine.key, n_models=FEWEST_POOLED):
        tags = dict.fromkeys(bank.subject_tags)
        if not seen.isdisjoint(tags):
            continue
        seen.update(tags)
        for some in _batched(tags, n_subjects):
            if len(some) == n_subjects:
                columns = [i for i, tag in enumerate(bank.subject_tags) if tag in some]
                found.append(bank.views[:, :, columns].astype(np.float64))
    return found


def _batched(values: Iterable[str], n: int) -> Iterator[set[str]]:
    """Sets of `n` in order; the last may be smaller."""
    rest = iter(values)
    while some := set(islice(rest, n)):
        yield some


def oracle_margins(work: Workspace) -> NDArray[np.float32]:
    """Margins of the run's forget rows under the oracles, `(n_oracles, n_forget)`.

    Raises:
        FileNotFoundError: some of the oracles are missing.
    """
    n_oracles, bank = work.plan.oracles.get("n", 0), oracle_bank(work)
    if bank is None:
        raise FileNotFoundError(f"Expected {n_oracles} complete oracles, found fewer; the run's step is repeated.")
    return margins_of(bank, example_ids(work.faces, work.plan.forget), n_oracles)


def oracle_bank(work: Workspace) -> Bank | None:
    """The oracles of the run; none if some are missing, or if no method of the ladder reads any."""
    if not work.plan.oracles:
        return None
    store = BankStore(work.context.settings.banks_folder)
    return store.find(oracle_bank_plan(work).key, n_models=work.plan.oracles["n"])


def _is_a_stale_bank_damaged(work: Workspace, store: BankStore) -> bool:
    """Whether one of the plan's banks is not complete and, being stale, cannot be built again."""
    wanted = [(bank_plan(work), work.policy.n_models)]
    if work.plan.oracles:
        wanted.append((oracle_bank_plan(work), work.plan.oracles["n"]))
    return any(planned.staleness.share > 0 and store.find(planned.key, n_models=n) is None for planned, n in wanted)
