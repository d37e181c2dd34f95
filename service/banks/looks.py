"""What was looked at in the models of a bank besides their margins (`service.training.looks`), in banks of its own.

Beside a bank of references, of originals or of a qualification's models lie two more in the same store, with the same
key but for the statistic: one with the descriptors of the bank's images, a row a descriptor and a column an image, and
one with the margins of the retained subjects that were looked at, a column a subject. Their columns name subjects as
those of all banks do, so whoever is erased loses them in the same stroke. A bank that was made before there were such
has none beside it: nothing was measured then, and who judges by it says so.

Tested in `tests/service/erasure/test_looking.py`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from audit.statistics.margins import Array
from service.banks.file_format import BESIDE, FEATURES, OTHERS
from service.banks.store import Bank, BankKey, BankStore, ReferenceRow
from service.errors import ReferencesError
from service.training.spec import require_intact

if TYPE_CHECKING:
    from service.banks.build import BankPlan
    from service.training.jobs import Outcome


def begin(store: BankStore, plan: BankPlan, key: BankKey, *, now: datetime) -> None:
    """Make room beside the bank `key`; nothing if the plan wants nothing looked at.

    Where a column lacks, all is begun anew: somebody was erased and is among the data again, or the sample is another.
    The models made before have then nothing beside them.
    """
    if plan.sample is None:
        return

    def all_begun() -> None:
        for statistic, (columns, tags) in _columns(plan).items():
            store.begin(
                replace(key, statistic=statistic), example_ids=columns, subject_tags=tags, n_wanted=1, now=now,
                before_write=partial(require_intact, plan.spec.images),
            )  # fmt: skip

    try:
        all_begun()
    except ReferencesError:
        discard(store, key)
        all_begun()


def discard(store: BankStore, key: BankKey) -> None:
    """Destroy what lies beside the bank `key`."""
    for statistic in BESIDE:
        store.discard(replace(key, statistic=statistic))


def keep(store: BankStore, plan: BankPlan, key: BankKey, outcome: Outcome) -> None:
    """Store what was looked at in one model of the bank `key`; nothing if nothing was.

    Called before the model's margins are stored: a seed that is not missing any more has all it ever will.
    """
    looks = outcome.looks
    if looks is None:
        return
    values = {FEATURES: looks.descriptors, OTHERS: looks.others}
    for statistic, (columns, _) in _columns(plan).items():
        if (found := values[statistic]) is None:
            continue
        row = ReferenceRow(
            outcome.seed, columns, found, outcome.retain_accuracy, outcome.test_accuracy, outcome.seconds
        )
        store.add(replace(key, statistic=statistic), row, before_write=partial(require_intact, plan.spec.images))


def _columns(plan: BankPlan) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """By statistic, names of columns and whose they are."""
    found = {FEATURES: (plan.example_ids, plan.tags), OTHERS: (plan.others, plan.others)}
    return {statistic: columns for statistic, columns in found.items() if columns[0]}


def descriptors_beside(
    store: BankStore, bank: Bank, n_models: int, example_ids: tuple[str, ...] | None = None
) -> Array | None:
    """Descriptors by a bank's first models, `(n_models, n_descriptors, n_images)`; none unless all are there.

    Args:
        example_ids: of the images; by default all of the bank.
    """
    found = _beside(store, bank, FEATURES, n_models)
    ids = bank.example_ids if example_ids is None else example_ids
    return None if found is None else found.views[:, :, found.columns(ids)].astype(np.float64)


def others_beside(store: BankStore, bank: Bank, n_models: int) -> tuple[tuple[str, ...], Array] | None:
    """Tags of retained subjects, ascending, and their T under a bank's first models, `(n_models, n_subjects)`."""
    found = _beside(store, bank, OTHERS, n_models)
    if found is None:
        return None
    order = np.argsort(found.subject_tags)
    return tuple(found.subject_tags[i] for i in order), found.views[:, 0, order].astype(np.float64)


def _beside(store: BankStore, bank: Bank, statistic: str, n_models: int) -> Bank | None:
    """The bank beside, with the rows of the first models alone, in their order."""
    found = store.find(replace(bank.key, statistic=statistic), n_models=n_models)
    if found is None:
        return None
    place = {seed: i for i, seed in enumerate(found.seeds.tolist())}
    seeds = bank.seeds[:n_models].tolist()
    if not place.keys() >= set(seeds):
        return None
    rows = [place[seed] for seed in seeds]
    return replace(found, views=found.views[rows], seeds=found.seeds[rows])
