"""Oracles: models trained ahead without a block of people, of which only their margins of its images stay.

Methods that need them (`unlearning.procedures.oracles`) take them as targets. An oracle bank is made as the reference
bank of the block is, lies beside it and goes with it when a person is erased, but has seeds of its own and a key of its
own statistic: neither the auditor nor a search for a stale reference bank can take the one for the other, so no method
learns from what judges it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.policy import Policy
from service.banks.build import BankPlan, OnProgress, build_bank
from service.banks.store import Bank, BankStore
from service.settings import Settings

STATISTIC = "oracle margin"
FIRST_SEED = 4_000_003  # references start at 0, originals (`service.banks.originals`) and runs of methods elsewhere


def n_wanted(methods: Mapping[str, Mapping[str, Any]]) -> int:
    """Oracles that methods read; 0 if none of them reads any.

    Args:
        methods: by name, their settings as plain values.
    """
    from unlearning.methods import find_method  # torch, which nobody needs who looks up or purges

    needing = (options for name, options in methods.items() if find_method(name).needs_oracles)
    return max((int(options["n_oracles"]) for options in needing), default=0)


def n_asked_for(settings: Settings, policy: Policy) -> int:
    """Oracles of each block that the methods of the policy's ladder read, with the settings in force."""
    if not policy.reads_oracles:
        return 0  # without loading torch
    from unlearning.methods import settings_for
    from unlearning.recipes import load_recipe

    recipe = load_recipe(settings.recipe)
    return n_wanted({name: settings_for(name, recipe, settings.tuned).to_dict() for name in policy.ladder})


def oracle_plan(plan: BankPlan) -> BankPlan:
    """The oracle bank beside a reference bank: the same rows and columns, another key."""
    return replace(plan, key=replace(plan.key, statistic=STATISTIC))


def build_oracles(
    store: BankStore,
    plan: BankPlan,
    n_oracles: int,
    settings: Settings,
    on_progress: OnProgress,
    *,
    now: datetime,
    run_id: str = "",
) -> Bank:
    """The oracle bank of an `oracle_plan`; builds what is missing, see `service.banks.build.build_bank`."""
    plan = replace(plan, sample=None)  # they judge nothing
    return build_bank(store, plan, n_oracles, settings, on_progress, now=now, first_seed=FIRST_SEED, run_id=run_id)


def margins_of(bank: Bank, example_ids: Iterable[str], n_oracles: int) -> NDArray[np.float32]:
    """What so many oracles say of some images, `(n_oracles, n_examples)`, in the order asked for."""
    return bank.margins[:n_oracles, bank.columns(example_ids)]
