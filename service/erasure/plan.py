"""What a run is about: rows to forget, rows to keep, the bank that judges. Made once, kept in the run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.policy import Policy
from service.banks.build import (
    BankPlan,
    OnProgress,
    build_bank,
    example_ids,
    plan_bank,
    plans_lock,
    training_code_version,
)
from service.banks.oracles import STATISTIC, build_oracles, margins_of, n_wanted
from service.banks.store import Bank, BankKey, BankStore, Staleness
from service.context import Context
from service.erasure.workspace import RunFolder
from service.errors import RunStoppedError
from service.models import registry
from service.requests import data_folder, doubts
from service.requests.runs import load_run, requests_of
from service.store.engine import reading
from service.training.data import asked_to_go, images_with, pack_images, recipe_of
from service.training.spec import PackedImages, Rows, TrialSpec, open_images
from unlearning import files
from unlearning.faces import Faces
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
        forget: training rows of the run's people.
        retain: training rows of everybody else but those whose erasure waits.
        images_of: by request id, how many images the service holds of the person.
        trained_of: by request id, how many of these the model learned from.
        bank: key, rows, example ids, tags, rosters and staleness of the bank that judges.
        methods: by name, the settings of each method of the ladder as they were when the run was planned.
        oracles: key, staleness and number of the oracles (`service.banks.oracles`); empty if no method of the ladder
            reads any.
        policy_name, recipe_digest: of the policy that was logged and the recipe in force when the run was planned.
        unanswerable: why nothing can be said of these people; empty: it can.
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
    policy_name: str = ""
    recipe_digest: str = ""
    unanswerable: str = ""

    @property
    def must_unlearn(self) -> bool:
        """Whether a model learned from these people."""
        return bool(self.forget) and bool(self.bank)

    @property
    def obstacle(self) -> str | None:
        """Why the run cannot go on; none: it can."""
        if self.unanswerable:
            return self.unanswerable
        if not self.must_unlearn or (self.retain and self.bank["retain"] and self.bank["test"]):
            return None
        return (
            "Too few other people are left: a model and its references need somebody to train on who is neither among "
            "these people nor in their block, and somebody in split test. Add pictures of other people, then approve."
        )


def plan(context: Context, policy: Policy, run_id: str) -> RunPlan:
    """Make the run's plan, or give the one it has."""
    stored = RunFolder(context.settings, run_id).read("plan")
    if stored is None:
        _make_and_keep(context, policy, run_id)
    return load(context, run_id)


def gather(
    context: Context,
    policy: Policy,
    run_id: str,
    on_progress: OnProgress,
    on_oracles: OnProgress = lambda done, wanted: None,
) -> Bank:
    """The bank that judges the run, complete, and the oracles it needs; built now if nobody built them ahead.

    A stale bank that was damaged since the plan was made, or is gone, cannot be made again; the plan then is, and what
    was made by the old one is destroyed.

    Raises:
        RunStoppedError: it cannot be made again.
    """
    store, settings, now = BankStore(context.settings.banks_folder), context.settings, context.now()
    run_plan = load(context, run_id)
    if not run_plan.obstacle and any(_is_damaged(store, *asked) for asked in _asked(context, policy, run_plan)):
        _forget_steps(RunFolder(settings, run_id))
        _make_and_keep(context, policy, run_id)
        run_plan = load(context, run_id)
    if run_plan.obstacle:
        raise RunStoppedError(run_plan.obstacle)
    if run_plan.oracles:
        asked = oracle_bank_plan(context, run_plan)
        build_oracles(store, asked, run_plan.oracles["n"], settings, on_oracles, now=now, run_id=run_id)
    return build_bank(
        store, bank_plan(context, run_plan), policy.n_models, settings, on_progress, now=now, run_id=run_id
    )


def _make_and_keep(context: Context, policy: Policy, run_id: str) -> RunPlan:
    """A new plan, in the run's folder before anybody could discard a bank that it names."""
    with plans_lock(context.settings, exclusive=False):
        made = _make(context, policy, run_id)
        RunFolder(context.settings, run_id).write("plan", asdict(made))
    return made


def _forget_steps(folder: RunFolder) -> None:
    """Destroy candidates and other seeds of an earlier plan."""
    for path in [*folder.path.glob("step-*"), *folder.unlearned().rglob("*")]:
        if path.is_file():
            files.destroy(path)


def _asked(context: Context, policy: Policy, run_plan: RunPlan) -> Iterator[tuple[BankPlan, int]]:
    """The banks of a plan, and how many models each must have."""
    yield bank_plan(context, run_plan), policy.n_models
    if run_plan.oracles:
        yield oracle_bank_plan(context, run_plan), run_plan.oracles["n"]


def _is_damaged(store: BankStore, planned: BankPlan, n_models: int) -> bool:
    """Whether a stale bank, which nobody can build again, is not complete any more."""
    return planned.staleness.share > 0 and store.find(planned.key, n_models=n_models) is None


def load(context: Context, run_id: str) -> RunPlan:
    """The plan made before.

    Raises:
        RunStoppedError: the recipe or the code that trains is another one now, so that a model made now would not be
            what the plan, its bank and a certificate say.
    """
    stored = RunFolder(context.settings, run_id).read("plan")
    if stored is None:
        raise FileNotFoundError(f"Expected the plan of run {run_id} in its folder; the folder was removed.")
    run_plan = RunPlan(**stored)
    is_old = run_plan.bank and run_plan.bank["key"]["code_version"] != training_code_version()
    if is_old or run_plan.recipe_digest != recipe_of(context).digest:
        raise RunStoppedError(
            f"Expected the {'training code' if is_old else 'recipe'} this run was planned with, but it changed "
            "meanwhile. Approve: the request is then planned anew."
        )
    return run_plan


def _make(context: Context, policy: Policy, run_id: str) -> RunPlan:
    from unlearning.methods import settings_for  # torch, which only a run's plan needs

    settings, recipe = context.settings, recipe_of(context)
    held = _look(context, run_id)
    if isinstance(held, str):
        return _unanswerable(recipe, held)
    subject_of = doubts.set_aside(context, run_id, held)
    if not subject_of:
        return _unanswerable(recipe, doubts.ALL_SET_ASIDE)
    base_digest = load_run(context, run_id).base_digest
    if not base_digest:  # nothing to unlearn: the folder need not be fit for training
        images_of = {request: held.n_images.get(subject, 0) for request, subject in subject_of.items()}
        trained_of = {request: held.n_trained.get(subject, 0) for request, subject in subject_of.items()}
        return RunPlan(
            folder_digest(settings.data_folder), [], [], [], images_of, trained_of, {}, policy_name=policy.name,
            recipe_digest=recipe.digest,
        )  # fmt: skip
    base = registry.get(context, base_digest).manifest
    if base["recipe_digest"] != recipe.digest:
        return _unanswerable(recipe, OTHER_RECIPE)
    classes = tuple(base["classes"])
    images = pack_images(settings, recipe, classes)
    faces = open_images(images)
    context.reached("unlearning.packed")
    subjects = set(subject_of.values())
    images_of = {request: len(faces.where(subjects={subject})) for request, subject in subject_of.items()}
    trained_of = {
        request: len(faces.where(split="train", subjects={subject})) for request, subject in subject_of.items()
    }
    forget = faces.where(split="train", subjects=subjects)
    trained = {faces.people[person] for person in faces.subject_of[forget]}
    absent = asked_to_go(context, faces) - trained
    retain = faces.where(split="train", without=trained | absent)
    methods = {name: settings_for(name, recipe, settings.tuned).to_dict() for name in policy.ladder}
    bank: dict[str, Any] = {}
    oracles: dict[str, Any] = {}
    if trained:
        find = partial(
            plan_bank, context, recipe, images, forget=trained, absent=absent, staleness_max=policy.staleness_max
        )
        judged_by = find(n_models=policy.n_models)
        if n_oracles := n_wanted(methods):
            asked = find(n_models=n_oracles, statistic=STATISTIC)
            oracles = {"n": n_oracles, "key": asdict(asked.key), "staleness": asdict(asked.staleness)}
        bank = {
            "key": asdict(judged_by.key),
            "retain": judged_by.spec.retain.tolist(),
            "scored": judged_by.spec.scored.tolist(),
            "test": judged_by.spec.test.tolist(),
            "example_ids": list(judged_by.example_ids),
            "tags": list(judged_by.tags),
            "learned": judged_by.learned,
            "tested": judged_by.tested,
            "staleness": asdict(judged_by.staleness),
        }
    return RunPlan(
        faces.manifest_digest, list(faces.classes), forget.tolist(), retain.tolist(), images_of, trained_of, bank,
        methods=methods, oracles=oracles, policy_name=policy.name, recipe_digest=recipe.digest,
    )  # fmt: skip


def _look(context: Context, run_id: str) -> data_folder.Held | str:
    """What the data folder holds, or why it cannot be said; a human's word is taken where only that can be had."""
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


def bank_plan(context: Context, run_plan: RunPlan) -> BankPlan:
    """The bank of a plan, ready to be found or built."""
    bank = run_plan.bank
    retain = rows(bank["retain"])
    spec = TrialSpec(
        images=images_at(context, run_plan), recipe=recipe_of(context), retain=retain, scored=rows(bank["scored"]),
        retain_scored=retain, test=rows(bank["test"]), device=context.settings.device,
    )  # fmt: skip
    return BankPlan(
        key=BankKey(**bank["key"]), spec=spec, example_ids=tuple(bank["example_ids"]), tags=tuple(bank["tags"]),
        learned=bank["learned"], tested=bank["tested"], staleness=Staleness(**bank["staleness"]),
    )  # fmt: skip


def oracle_bank_plan(context: Context, run_plan: RunPlan) -> BankPlan:
    """The oracle bank of a plan that has one, ready to be found or built."""
    oracles = run_plan.oracles
    return replace(
        bank_plan(context, run_plan), key=BankKey(**oracles["key"]), staleness=Staleness(**oracles["staleness"])
    )


def oracles(context: Context, run_plan: RunPlan) -> NDArray[np.float32]:
    """What the oracles say of the run's forget rows, `(n_oracles, n_forget)`.

    Raises:
        FileNotFoundError: they are not there, or not all.
    """
    n_oracles, bank = run_plan.oracles.get("n", 0), _oracle_bank(context, run_plan)
    if bank is None:
        raise FileNotFoundError(f"Expected {n_oracles} complete oracles, found fewer; the run's step is repeated.")
    return margins_of(bank, example_ids(faces_at(context, run_plan), run_plan.forget), n_oracles)


def are_oracles_there(context: Context, run_plan: RunPlan) -> bool:
    """Whether `oracles` can be read."""
    return _oracle_bank(context, run_plan) is not None


def _oracle_bank(context: Context, run_plan: RunPlan) -> Bank | None:
    if not run_plan.oracles:
        return None
    key = oracle_bank_plan(context, run_plan).key
    return BankStore(context.settings.banks_folder).find(key, n_models=run_plan.oracles["n"])


def forget_spec(context: Context, run_plan: RunPlan) -> TrialSpec:
    """TrialSpec of the run's own trials: scored on the forget set, retain accuracy on the rows the bank uses."""
    bank = run_plan.bank
    return TrialSpec(
        images=images_at(context, run_plan), recipe=recipe_of(context), retain=rows(run_plan.retain),
        scored=rows(run_plan.forget), retain_scored=rows(bank["retain"]), test=rows(bank["test"]),
        device=context.settings.device, forget=rows(run_plan.forget),
    )  # fmt: skip


def faces_at(context: Context, run_plan: RunPlan) -> Faces:
    """The packed arrays the plan speaks of."""
    return open_images(images_at(context, run_plan))


def images_at(context: Context, run_plan: RunPlan) -> PackedImages:
    return images_with(context.settings, recipe_of(context), tuple(run_plan.classes), run_plan.manifest_digest)


def rows(numbers: list[int]) -> Rows:
    """Row numbers as an array."""
    return np.array(numbers, dtype=np.int64)
