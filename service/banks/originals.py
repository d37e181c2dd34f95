"""Originals: models trained with everybody, which say how a model that forgot nothing answers on a subject's images.

One bank of them serves all subjects. It decides nothing: the gate (`audit.statistics.gate`) reads from it how much had
been learned of a subject, how likely it is to reject a model that forgot nothing, and how the candidate weighs between
the two. It is trained ahead, never for a request, since from the moment somebody asks to be erased no model may be
trained on them. Whoever is erased loses their columns; that the models learned from them is then counted in the bank's
staleness, up to `STALENESS_MAX`, beyond which it speaks of other data than the references do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from service.banks.build import BankPlan, OnProgress, build_bank, example_ids, plan_exact_bank
from service.banks.file_format import IN
from service.banks.store import Bank, BankKey, BankStore, Staleness
from service.context import Context
from service.settings import Settings
from service.training.spec import PackedImages, Rows, open_images
from unlearning.recipes import Recipe

FIRST_SEED = 5_000_003  # references start at 0, oracles, runs of methods and other originals elsewhere
N_ORIGINALS = 16
FEWEST = 4
"""Originals without which nothing is said of power: their own spread would be a guess."""
STALENESS_MAX = 0.25


def originals_plan(context: Context, recipe: Recipe, images: PackedImages, absent: Iterable[str]) -> BankPlan:
    """The bank of models that learned from everybody but those whose erasure waits, with a column for each image."""
    faces = open_images(images)
    plan = plan_exact_bank(context, recipe, images, set(), set(absent))
    rows = plan.spec.retain
    tag_of = {person: context.keyring.block_hash(faces.people[person]) for person in set(faces.subject_of[rows])}
    return replace(
        plan,
        key=replace(plan.key, statistic=IN),
        spec=replace(plan.spec, scored=rows),
        example_ids=example_ids(faces, rows),
        tags=tuple(tag_of[person] for person in faces.subject_of[rows]),
        others=(),  # whom they expose is nobody's question
    )


def build_originals(
    store: BankStore, plan: BankPlan, n_models: int, settings: Settings, on_progress: OnProgress, *, now: datetime
) -> Bank:
    """The bank of an `originals_plan`; builds what is missing, see `service.banks.build.build_bank`."""
    return build_bank(store, plan, n_models, settings, on_progress, now=now, first_seed=FIRST_SEED)


def find_originals(
    context: Context, recipe: Recipe, images: PackedImages, forget: Rows, leaving: set[str]
) -> tuple[BankKey, Staleness] | None:
    """The bank of models that learned from the forget rows too; none if none is there or near enough to the data.

    Args:
        forget: training rows of the run's subjects.
        leaving: user ids of these and of all others whose erasure waits.
    """
    present = plan_exact_bank(context, recipe, images, set(), leaving)
    return BankStore(context.settings.banks_folder).find_stale(
        replace(present.key, statistic=IN),
        example_ids=example_ids(open_images(images), forget),
        learned=present.learned,
        tested=present.tested,
        leaving={context.keyring.block_hash(subject) for subject in leaving},
        n_models=FEWEST,
        share_max=STALENESS_MAX,
    )
