"""The plan of a run: rows to forget, rows to retain, the bank that judges. Made once and kept in the run's folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from audit.policy import Policy
from service.banks.build import BankPlan, plan_bank
from service.banks.oracles import STATISTIC, n_wanted
from service.banks.originals import find_originals
from service.banks.spares import find as find_spare
from service.context import Context
from service.erasure.ladder import by_price
from service.models import registry
from service.requests import data_folder, doubts
from service.requests.runs import requests_of
from service.store.engine import reading
from service.store.tables import Run
from service.training.data import asked_to_go, pack_images, recipe_of
from service.training.spec import Rows, open_images
from unlearning.faces.packing import folder_digest
from unlearning.recipes import Recipe

OTHER_RECIPE = (
    "Expected the recipe the model in service was trained with, got another one: reference models and a retrained "
    "model would be of another kind. Set EXPUNGE_RECIPE to that recipe again, or train anew with `expunge train`; then "
    "approve."
)


@dataclass(frozen=True)
class RunPlan:
    """Row numbers of the packed arrays, by role; JSON in the run's folder.

    Attributes:
        manifest_digest: of the data folder as the run found it; "" where it could not be looked at.
        classes: of the model, in the order of its outputs.
        forget: training rows of the run's subjects.
        retain: training rows of all other subjects, without those whose erasure waits.
        images_of: by request id, how many images the service holds of the subject.
        trained_of: by request id, how many of these the model learned from.
        bank: key, rows, example ids, tags, rosters and staleness of the bank that judges.
        methods: by name, the settings of each method of the ladder as they were when the run was planned.
        oracles: key, staleness and number of the oracles (`service.banks.oracles`); empty if no method of the ladder
            reads any.
        originals: key and staleness of the bank of models that learned from everybody (`service.banks.originals`);
            empty if there is none.
        spare: digest of the model trained without the subjects, from which a rung of the ladder starts
            (`service.banks.spares`); empty if no rung does, or there is none.
        order: the rungs in the order in which the run tries them, with the expected price of each
            (`service.erasure.ladder.PricedRung`); empty: the policy's.
        policy_name, recipe_digest: of the policy that was logged and the recipe in force when the run was planned.
        unanswerable: why nothing can be said of these subjects; empty: it can.
    """

    manifest_digest: str
    classes: list[str]
    forget: list[int]
    retain: list[int]
    images_of: dict[str, int]
    trained_of: dict[str, int]
    bank: dict[str, Any]
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    oracles: dict[str, Any] = field(default_factory=dict)
    originals: dict[str, Any] = field(default_factory=dict)
    spare: str = ""
    order: list[dict[str, Any]] = field(default_factory=list)
    policy_name: str = ""
    recipe_digest: str = ""
    unanswerable: str = ""

    @property
    def must_unlearn(self) -> bool:
        """Whether a model learned from these subjects."""
        return bool(self.forget) and bool(self.bank)

    @property
    def rungs(self) -> tuple[str, ...]:
        """Methods in the run's order; none for the policy's."""
        return tuple(rung["method"] for rung in self.order)

    @property
    def obstacle(self) -> str | None:
        """Why the run cannot go on; none: it can."""
        if self.unanswerable:
            return self.unanswerable
        if not self.must_unlearn or (self.retain and self.bank["retain"] and self.bank["test"]):
            return None
        return (
            "Too few other people are left: a model and its references need somebody to train on who is neither among "
            "these people nor in their block, and somebody in split test. Add images of other people, then approve."
        )


def make_plan(context: Context, policy: Policy, run: Run) -> RunPlan:
    """The plan of a run on the data folder as it is now; requests that a human must look at leave the run."""
    from service.models.building import build_model  # torch, which only a run's plan needs
    from service.training.answers import refusal
    from unlearning.methods import settings_for

    settings, recipe = context.settings, recipe_of(context)
    held = _look(context, run.id)
    if isinstance(held, str):
        return _unanswerable(recipe, held)
    subject_of = doubts.set_aside(context, run.id, held)
    if not subject_of:
        return _unanswerable(recipe, doubts.ALL_SET_ASIDE)
    if not run.base_digest:  # nothing to unlearn: the folder need not be fit for training
        images_of = {request: held.n_images.get(subject, 0) for request, subject in subject_of.items()}
        trained_of = {request: held.n_trained.get(subject, 0) for request, subject in subject_of.items()}
        return RunPlan(
            folder_digest(settings.data_folder), [], [], [], images_of, trained_of, {}, policy_name=policy.name,
            recipe_digest=recipe.digest,
        )  # fmt: skip
    base = registry.get(context, run.base_digest).manifest
    if base["recipe_digest"] != recipe.digest:
        return _unanswerable(recipe, OTHER_RECIPE)
    images = pack_images(settings, recipe, tuple(base["classes"]))
    faces = open_images(images)
    context.reached("unlearning.packed")
    subjects = set(subject_of.values())
    images_of = {request: len(faces.where(subjects={subject})) for request, subject in subject_of.items()}
    trained_of = {
        request: len(faces.where(split="train", subjects={subject})) for request, subject in subject_of.items()
    }
    forget = faces.where(split="train", subjects=subjects)
    trained = {faces.people[index] for index in faces.subject_of[forget]}
    absent = asked_to_go(context, faces) - trained
    retain = faces.where(split="train", without=trained | absent)
    methods = {name: settings_for(name, recipe, settings.tuned).to_dict() for name in policy.ladder}
    bank: dict[str, Any] = {}
    oracles: dict[str, Any] = {}
    originals: dict[str, Any] = {}
    spare, order = None, list[dict[str, Any]]()
    if trained:
        model = build_model(registry.load_checked(context, run.base_digest))
        if (reason := refusal("the model in service", model, faces, faces.where(split="train"))) is not None:
            return _unanswerable(recipe, f"{reason} Then approve.")
        find = partial(
            plan_bank, context, recipe, images, forget=trained, absent=absent, staleness_max=policy.staleness_max
        )
        bank = _bank_of(find(n_models=policy.n_models))
        if n_oracles := n_wanted(methods):
            planned = find(n_models=n_oracles, statistic=STATISTIC)
            oracles = {"n": n_oracles, "key": asdict(planned.key), "staleness": asdict(planned.staleness)}
        if found := find_originals(context, recipe, images, forget, trained | absent):
            originals = {"key": asdict(found[0]), "staleness": asdict(found[1])}
        if policy.reads_spares:
            spare = find_spare(context, recipe, faces, trained)
        if policy.cheapest_first:
            order = list(map(asdict, by_price(context, policy, recipe, methods, has_spare=spare is not None)))
    return RunPlan(
        faces.manifest_digest, list(faces.classes), forget.tolist(), retain.tolist(), images_of, trained_of, bank,
        methods=methods, oracles=oracles, originals=originals, spare=spare.digest if spare else "",
        order=order, policy_name=policy.name, recipe_digest=recipe.digest,
    )  # fmt: skip


def _bank_of(planned: BankPlan) -> dict[str, Any]:
    """`RunPlan.bank`."""
    return {
        "key": asdict(planned.key),
        "retain": planned.spec.retain.tolist(),
        "scored": planned.spec.scored.tolist(),
        "test": planned.spec.test.tolist(),
        "example_ids": list(planned.example_ids),
        "tags": list(planned.tags),
        "learned": planned.learned,
        "tested": planned.tested,
        "sample": [] if planned.sample is None else planned.sample.tolist(),
        "others": list(planned.others),
        "staleness": asdict(planned.staleness),
    }


def _look(context: Context, run_id: str) -> data_folder.Held | str:
    """What the data folder holds, or why it cannot be said; where only a human can know, an approval says it."""
    found = data_folder.look(context)
    if found == data_folder.NO_ROSTER:
        with reading(context.engine) as s:
            is_confirmed = any(doubts.is_confirmed(s, request.id, found) for request in requests_of(s, run_id))
        if is_confirmed:
            data_folder.confirm(context)
            return data_folder.look(context)
    return found


def _unanswerable(recipe: Recipe, reason: str) -> RunPlan:
    return RunPlan("", [], [], [], {}, {}, {}, recipe_digest=recipe.digest, unanswerable=reason)


def as_rows(numbers: list[int]) -> Rows:
    """Row numbers as an array."""
    return np.array(numbers, dtype=np.int64)
