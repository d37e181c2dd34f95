"""Making a candidate by one step of the ladder, and what its attempt is; `judging` and `deploying` go on from here."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
from sqlmodel import Session, select

from audit.policy import RETRAIN
from audit.qualification import Bars
from service.banks.build import BankPlan, build_bank, example_ids
from service.banks.qualifications import Qualified, count_subjects, find_valid
from service.banks.store import BankStore
from service.erasure import looking
from service.erasure.ladder import steps
from service.erasure.plan import as_rows
from service.erasure.references import (
    bank_plan,
    gather,
    noting,
    oracle_bank,
    oracle_margins,
)
from service.erasure.workspace import Workspace
from service.errors import NotFoundError, PoorModelError, WeightsError
from service.inference.network import network_for
from service.models import registry
from service.models.building import build_model
from service.requests.runs import note
from service.store.engine import session
from service.store.tables import Attempt, Run
from service.training.answers import refusal
from service.training.jobs import Outcome, score
from service.training.production import made_with
from service.training.served import make_and_score
from service.training.spec import TrialSpec
from unlearning import files
from unlearning.errors import MethodError, RecipeError
from unlearning.methods import METHODS
from unlearning.models import load_weights
from unlearning.training import fresh_model

log = structlog.get_logger()

NO_SPARE = (
    "Expected a spare, a model that was trained ahead without these subjects, found none; `expunge references build` "
    "trains spares, and the worker does while it is idle."
)


def unlearn(work: Workspace, step: int) -> str | None:
    """Make the step's candidate, and for an approximate method the bank of its other seeds.

    The candidate is the first trial, whatever the others show: a candidate chosen after the audit would be selection.

    Returns:
        None, or why there is nothing to judge: the method is not qualified where the policy asks for that, it diverged,
        with the candidate's seed or another, cannot work on this network, or made a candidate that answers one class
        only. The attempt is then ended as undetermined, and the next step is to be tried.
    """
    method = steps(work.policy, work.plan.rungs)[step]
    attempt = _open_attempt(work, step, method)
    if attempt.verdict is not None:  # ended when the step was tried before
        return None if attempt.candidate_digest else " ".join(attempt.reasons)
    work.context.reached("unlearning.attempt")
    if (lacking := _lacking(work, method)) is not None:
        _give_up_attempt(work, step, lacking)
        return lacking
    try:
        _make_models(work, step, method)
    except (MethodError, RecipeError, PoorModelError) as error:
        _give_up_attempt(work, step, str(error))
        return str(error)
    return None


def _lacking(work: Workspace, method: str) -> str | None:
    """Why the method cannot be tried: it is not qualified, or there is no spare to start from; None: it can."""
    if isinstance(found := qualification_of(work, method), str):
        return found
    if METHODS[method].needs_spare:
        if not work.plan.spare:
            return NO_SPARE
        try:
            registry.load_checked(work.context, work.plan.spare)
        except (NotFoundError, WeightsError) as error:
            return error.detail
    return None


def _make_models(work: Workspace, step: int, method: str) -> None:
    context, folder = work.context, work.folder
    if METHODS[method].needs_oracles and oracle_bank(work) is None:
        gather(work)
    spec = spec_of(work, method)
    if "served" not in (folder.read(f"step-{step}") or {}):
        note(context, work.run_id, f"{method}: making the candidate")
        _make_candidate(work, step, spec, method)
        context.reached("unlearning.recorded")
    recipe = work.recipe
    candidate = fresh_model(recipe, len(work.faces.classes))
    load_weights(candidate, folder.weights(step))
    if (reason := refusal(f"the candidate of {method}", candidate, work.faces, as_rows(work.plan.retain))) is not None:
        raise PoorModelError(reason)
    if METHODS[method].exact or work.policy.qualification:
        return
    on_progress = noting(work, f"{method}: unlearned models", half="unlearning.bank")
    store, planned = BankStore(folder.unlearned()), unlearned_bank_plan(work, spec)
    build_bank(store, planned, work.policy.n_models, context.settings, on_progress, now=context.now())


def _make_candidate(work: Workspace, step: int, spec: TrialSpec, method: str) -> None:
    """Make and score the step's candidate, and record what was measured."""
    context, folder, is_spare = work.context, work.folder, method == "spare"
    like = parent_of(work, method) if is_spare else work.run.base_digest  # a spare is registered, and has its own
    manifest = registry.Manifest.from_dict(registry.get(context, like).manifest)
    if (network := network_for(context, manifest)) is not None:
        files.overwrite(folder.network(step), network)
    sample = bank_plan(work).sample  # not by what the bank that judges holds: nothing of it is opened here
    outcome, served = make_and_score(
        replace(spec, sample=sample), seed_of(work.run, step), folder.weights(step), manifest, context.settings,
        network, here=is_spare,
    )  # fmt: skip
    context.reached("unlearning.weights")
    folder.write(
        f"step-{step}",
        {
            **vars(outcome),
            "views": outcome.views.tolist(),
            "looks": looking.to_json(outcome.looks, sample),
            "made_with": made_with(context),
            "served": served.to_dict(np.array(outcome.views, dtype=np.float32)),
        },
    )


def qualification_of(work: Workspace, method: str) -> Qualified | str | None:
    """The method's qualification, or why it has none; None where the policy asks for none."""
    if METHODS[method].exact or not work.policy.qualification:
        return None
    return find_valid(
        work.context, method=method, options=work.plan.methods[method], recipe=work.recipe,
        n_subjects_now=count_subjects(work.context), bars=Bars.of(work.policy),
    )  # fmt: skip


def original_outcome(work: Workspace, spec: TrialSpec) -> Outcome:
    """The model before unlearning, scored like a trial."""
    model = build_model(registry.load_checked(work.context, work.run.base_digest))
    views, retain_accuracy, test_accuracy = score(spec, model)
    return Outcome(-1, views, retain_accuracy, test_accuracy, 0.0, 0, 0, work.run.base_digest)


def seed_of(run: Run, step: int) -> int:
    """Seed of a step's candidate, fixed when the run was claimed and logged with the policy."""
    return int((run.seed + 1_000_003 * (step + 1)) % 2**31)


def spec_of(work: Workspace, method: str) -> TrialSpec:
    """How the run's candidates by this method are made, and the rows on which they are scored.

    They are scored on the forget set. Their retain accuracy is measured on the rows that the reference bank uses.
    """
    context, plan = work.context, work.plan
    spec = TrialSpec(
        images=work.images, recipe=work.recipe, retain=as_rows(plan.retain), scored=as_rows(plan.forget),
        retain_scored=as_rows(plan.bank["retain"]), test=as_rows(plan.bank["test"]), device=context.settings.device,
        forget=as_rows(plan.forget), with_views=True,
    )  # fmt: skip
    if method == RETRAIN:
        return spec
    parent = parent_of(work, method)
    return replace(
        spec, method=method, options=plan.methods.get(method), base_digest=parent,
        oracles=oracle_margins(work) if METHODS[method].needs_oracles else None,
        base_weights=registry.bring_here(context, parent),
    )  # fmt: skip


def parent_of(work: Workspace, method: str) -> str:
    """Digest of the weights that a method starts from: the model in service, or the run's spare."""
    return work.plan.spare if METHODS[method].needs_spare else work.run.base_digest


def unlearned_bank_plan(work: Workspace, spec: TrialSpec) -> BankPlan:
    """The bank of a method's other seeds. It lies in the run's folder and is destroyed with it."""
    made_by = hashlib.sha256(f"{work.run_id} {spec.method} {work.run.base_digest}".encode()).hexdigest()
    key = replace(bank_plan(work).key, training_digest=made_by)
    ids = example_ids(work.faces, work.plan.forget)
    return BankPlan(key, spec, ids, ("forget",) * len(ids))


def _open_attempt(work: Workspace, step: int, method: str) -> Attempt:
    with session(work.context.engine) as s:
        attempt = s.exec(select(Attempt).where(Attempt.run_id == work.run_id, Attempt.step == step)).first()
        if attempt is None:
            attempt = Attempt(
                run_id=work.run_id, step=step, method=method, seed=seed_of(work.run, step),
                started_at=work.context.now(),
            )  # fmt: skip
            s.add(attempt)
            s.commit()
            s.refresh(attempt)
        return attempt


def _give_up_attempt(work: Workspace, step: int, reason: str) -> None:
    """End an attempt that made nothing to judge; `reason` is a sentence of ours, which names nobody."""
    with session(work.context.engine) as s:
        attempt = attempt_of(s, work.run_id, step)
        attempt.verdict, attempt.reasons, attempt.finished_at = "UNDETERMINED", [reason], work.context.now()
        s.add(attempt)
        s.commit()
    log.warning("unlearning.no_candidate", step=step, method=attempt.method, reason=reason)


def attempt_of(s: Session, run_id: str, step: int) -> Attempt:
    """The attempt of a step that was begun."""
    return s.exec(select(Attempt).where(Attempt.run_id == run_id, Attempt.step == step)).one()


def outcome_of(work: Workspace, step: int) -> dict[str, Any]:
    """What was recorded when the step's candidate was made."""
    outcome = work.folder.read(f"step-{step}")
    if outcome is None:
        raise FileNotFoundError(f"Expected the outcome of step {step} in the run's folder, found none.")
    return outcome
