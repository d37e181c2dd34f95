"""Making a candidate by one step of the ladder, judging it, and putting the certified one into service."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
from sqlmodel import Session, col, select

from audit.evaluation import Evaluation, Evidence, evaluate
from audit.policy import Policy
from audit.report.content import report_of
from audit.report.page import render_html, write
from service.banks.build import BankPlan, OnProgress, build_bank, columns_of, example_ids
from service.banks.store import Bank, BankStore
from service.context import LINE, Context
from service.erasure import plan as planning
from service.erasure.certificates import Issuer
from service.erasure.evidence import kept
from service.erasure.purge_record import Facts
from service.erasure.workspace import RunFolder
from service.models import registry, rosters
from service.models.building import build_model
from service.models.deployment import deploy as swap
from service.requests.runs import get_run, load_run, note, requests_of
from service.store import ledger
from service.store.engine import reading, session
from service.store.tables import Attempt, Run
from service.training import data
from service.training.jobs import Outcome, run_trials, score
from service.training.production import library_versions, made_with
from service.training.spec import TrialSpec
from unlearning.devices import describe_device, resolve_device
from unlearning.errors import MethodError, RecipeError
from unlearning.faces.decoding import to_png
from unlearning.methods import METHODS

log = structlog.get_logger()


def steps(policy: Policy) -> tuple[str, ...]:
    """Methods a run tries, in order: the ladder, exact retraining as often as the policy allows."""
    return policy.ladder[:-1] + policy.ladder[-1:] * policy.retrain_attempts


def unlearn(context: Context, policy: Policy, run_id: str, step: int) -> str | None:
    """Make the step's candidate, and for an approximate method the bank of its other seeds.

    The candidate is the first trial, whatever the others show: a candidate chosen after the audit would be selection.

    Returns:
        None, or why there is nothing to judge: the method diverged, with the candidate's seed or another, or cannot
        work on this network. The attempt is then ended as undetermined, and the next step is to be tried.
    """
    method, run = steps(policy)[step], load_run(context, run_id)
    attempt = _open_attempt(context, run_id, step, method, seed_of(run, step))
    if attempt.verdict is not None:  # ended before a repetition of this step
        return None if attempt.candidate_digest else " ".join(attempt.reasons)
    context.reached("unlearning.attempt")
    try:
        _make_models(context, policy, run, step)
    except (MethodError, RecipeError) as error:
        _give_up_attempt(context, run_id, step, str(error))
        return str(error)
    return None


def _make_models(context: Context, policy: Policy, run: Run, step: int) -> None:
    run_id, method, seed = run.id, steps(policy)[step], seed_of(run, step)
    plan, folder = planning.load(context, run_id), RunFolder(context.settings, run_id)
    if METHODS[method].needs_oracles and not planning.are_oracles_there(context, plan):
        _gather(context, policy, run_id)
        plan = planning.load(context, run_id)
    spec = spec_of(context, plan, run, method)
    if folder.read(f"step-{step}") is None:
        note(context, run_id, f"{method}: making the candidate")
        (outcome,) = run_trials(spec, [seed], context.settings, keep_weights=folder.weights(step))
        context.reached("unlearning.weights")
        folder.write(f"step-{step}", {**_to_json(outcome), "made_with": made_with(context)})
        context.reached("unlearning.recorded")
    if METHODS[method].exact:
        return

    def progress(done: int, wanted: int) -> None:
        note(context, run_id, f"{method}: unlearned models {done}/{wanted}")
        if done == wanted // 2:
            context.reached("unlearning.bank")

    bank = _unlearned_plan(context, plan, spec, run)
    build_bank(BankStore(folder.unlearned()), bank, policy.n_models, context.settings, progress, now=context.now())


def _gather(context: Context, policy: Policy, run_id: str) -> Bank:
    """The bank that judges the run and its oracles; they are there, unless something took them away since."""

    def told(what: str) -> OnProgress:
        def tell(done: int, wanted: int) -> None:
            if done < wanted:
                note(context, run_id, f"{what} {done}/{wanted}")

        return tell

    return planning.gather(context, policy, run_id, told("reference models"), told("oracles"))


def judge(context: Context, policy: Policy, run_id: str, step: int) -> bool:
    """The audit of the step's candidate; gives whether it passed. Report, log entry and, if it failed, certificate.

    Where the bank that judges is gone, the run is planned again, and the candidate is made again if the plan changed.
    """
    with reading(context.engine) as s:
        attempt = _attempt(s, run_id, step)
    if attempt.verdict is not None:
        return attempt.verdict == "PASSED"
    bank = _gather(context, policy, run_id)
    if unlearn(context, policy, run_id, step) is not None:  # there already, unless the plan changed
        return False
    note(context, run_id, f"{attempt.method}: audit")
    started = time.perf_counter()
    evaluation = _evaluate(context, policy, run_id, step, bank)
    context.reached("auditing.evaluated")
    _write_report(context, policy, evaluation, run_id, attempt)
    context.reached("auditing.reported")
    log.info("audit.done", step=step, verdict=evaluation.verdict, seconds=time.perf_counter() - started)
    passed = evaluation.verdict == "PASSED"
    folder = RunFolder(context.settings, run_id)
    outcome = folder.read(f"step-{step}") or {}
    figures = {
        **kept(evaluation.to_dict(), context.settings),
        "margin_means": _margin_means(evaluation.evidence),
        "made_with": outcome["made_with"],
    }
    with session(context.engine) as s:
        now = context.now()
        attempt = _attempt(s, run_id, step)
        attempt.verdict, attempt.figures, attempt.finished_at = evaluation.verdict, figures, now
        attempt.reasons = [
            check.sentence for check in evaluation.checks if check.applicable and check.passed is not True
        ]
        attempt.candidate_digest = outcome["weights_digest"]
        ledger.record(
            s, "audit", now=now, run_id=run_id, step=step, verdict=evaluation.verdict, weights=outcome["weights_digest"]
        )
        run = get_run(s, run_id)
        if passed:
            run.candidate_digest, run.updated_at = attempt.candidate_digest, now
            s.add(run)
        else:
            commitments = tuple(request.commitment for request in requests_of(s, run_id))
            facts = Facts.of(context, planning.load(context, run_id))
            attempt.certificate_id = Issuer(context, run, facts).failure(s, attempt, commitments)
            context.reached("auditing.signed")
        s.add(attempt)
        s.commit()
    context.reached("auditing.stored")
    return passed


def deploy(context: Context, run_id: str) -> None:
    """Register the certified weights, swap every serving process to them, keep the barrier's rows with the run."""
    run, folder = load_run(context, run_id), RunFolder(context.settings, run_id)
    with reading(context.engine) as s:
        attempt = _passed(s, run_id)
    base = registry.get(context, run.base_digest)
    manifest = registry.Manifest.from_dict(
        {
            **base.manifest,
            "seed": attempt.seed,
            "versions": attempt.figures["made_with"]["versions"],
            "lineage": {"method": attempt.method, "parent": run.base_digest, "run_id": run_id},
        }
    )
    learned_from = _learned_from(context, planning.load(context, run_id), run, attempt.method)
    digest = registry.add(context, folder.weights(attempt.step), manifest, learned_from)
    if digest != attempt.candidate_digest:
        raise ValueError("Expected the audited weights in the run's folder, found others; nothing was deployed.")
    context.reached("deploying.registered")
    note(context, run_id, "waiting for the serving processes to swap")
    barrier = swap(context, digest, forget_older=True)
    context.reached("deploying.barrier")
    folder.write("barrier", barrier.to_dict())
    with session(context.engine) as s:
        row = get_run(s, run_id)
        row.generation, row.updated_at = barrier.generation, context.now()
        s.add(row)
        s.commit()
    log.info("run.deployed", generation=barrier.generation)


def _learned_from(context: Context, plan: planning.RunPlan, run: Run, method: str) -> dict[str, int] | None:
    """The candidate's roster: who was retrained on and, unless that is all it knows, whom its parent learned from."""
    retained = rosters.of_rows(context.keyring, planning.faces_at(context, plan), planning.rows(plan.retain))
    if METHODS[method].exact:
        return retained
    with reading(context.engine) as s:
        parents = rosters.read(s, run.base_digest)
        gone = {request.subject_hash for request in requests_of(s, run.id)}
    if not parents:
        return None
    return {each: n for each, n in (retained | parents).items() if each not in gone}


def _evaluate(context: Context, policy: Policy, run_id: str, step: int, bank: Bank) -> Evaluation:
    plan, folder, run = planning.load(context, run_id), RunFolder(context.settings, run_id), load_run(context, run_id)
    method = steps(policy)[step]
    spec = spec_of(context, plan, run, method)
    ids = example_ids(planning.faces_at(context, plan), plan.forget)
    planned = planning.bank_plan(context, plan)
    candidate = folder.read(f"step-{step}")
    if candidate is None:
        raise FileNotFoundError(f"Expected the outcome of step {step} in the run's folder.")
    original = original_outcome(context, spec, run)
    unlearned: Bank | None = None
    cost_share: float | None = None
    if not METHODS[method].exact:
        store, key = BankStore(folder.unlearned()), _unlearned_plan(context, plan, spec, run).key
        unlearned = _need(store.find(key, n_models=policy.n_models), "unlearned bank")
        cost_share = float(np.median(unlearned.seconds) / np.median(bank.seconds))
    evidence = Evidence(
        retrained=columns_of(bank, ids),
        unlearned=columns_of(unlearned, ids) if unlearned else None,
        deployed=np.array(candidate["margins"], dtype=np.float64),
        original=original.margins.astype(np.float64),
        retain_accuracy_retrained=bank.retain_accuracy,
        retain_accuracy_unlearned=unlearned.retain_accuracy if unlearned else None,
        retain_accuracy_deployed=candidate["retain_accuracy"],
        retain_accuracy_original=original.retain_accuracy,
        test_accuracy_retrained=bank.test_accuracy,
        test_accuracy_unlearned=unlearned.test_accuracy if unlearned else None,
        test_accuracy_deployed=candidate["test_accuracy"],
        test_accuracy_original=original.test_accuracy,
        cost_share=cost_share,
        exact=METHODS[method].exact,
        staleness=planned.staleness,
    )
    return evaluate(evidence, policy, rung=min(step, len(policy.ladder) - 1), seed=run.seed)


def original_outcome(context: Context, spec: TrialSpec, run: Run) -> Outcome:
    """The model before unlearning, scored like a trial."""
    model = build_model(registry.load_checked(context, run.base_digest))
    margins, retain_accuracy, test_accuracy = score(spec, model)
    return Outcome(-1, margins, retain_accuracy, test_accuracy, 0.0, 0, 0, run.base_digest)


def _margin_means(evidence: Evidence) -> dict[str, float]:
    """Mean margin over the forget set: of the model before, of the candidate, of the references and their spread."""
    retrained = evidence.retrained.mean(axis=1)  # (n_models,)
    return {
        "original": float(evidence.original.mean()),
        "deployed": float(evidence.deployed.mean()),
        "retrained": float(retrained.mean()),
        "retrained_deviation": float(retrained.std(ddof=1)),
    }


def seed_of(run: Run, step: int) -> int:
    """Seed of a step's candidate, fixed when the run was claimed and logged with the policy."""
    return int((run.seed + 1_000_003 * (step + 1)) % 2**31)


def spec_of(context: Context, plan: planning.RunPlan, run: Run, method: str) -> TrialSpec:
    """How the run's candidates by this method are made and scored."""
    spec = planning.forget_spec(context, plan)
    if METHODS[method].exact:
        return spec
    weights = registry.bring_here(context, run.base_digest)
    options = plan.methods.get(method)
    oracles = planning.oracles(context, plan) if METHODS[method].needs_oracles else None
    return replace(
        spec, method=method, options=options, oracles=oracles, base_weights=weights, base_digest=run.base_digest
    )


def _unlearned_plan(context: Context, plan: planning.RunPlan, spec: TrialSpec, run: Run) -> BankPlan:
    """The bank of a method's other seeds; it lies in the run's folder and goes with it."""
    made_by = hashlib.sha256(f"{run.id} {spec.method} {run.base_digest}".encode()).hexdigest()
    key = replace(planning.bank_plan(context, plan).key, training_digest=made_by)
    ids = example_ids(planning.faces_at(context, plan), plan.forget)
    return BankPlan(key, spec, ids, ("forget",) * len(ids))


def _open_attempt(context: Context, run_id: str, step: int, method: str, seed: int) -> Attempt:
    with session(context.engine) as s:
        attempt = s.exec(select(Attempt).where(Attempt.run_id == run_id, Attempt.step == step)).first()
        if attempt is None:
            attempt = Attempt(run_id=run_id, step=step, method=method, seed=seed, started_at=context.now())
            s.add(attempt)
            s.commit()
            s.refresh(attempt)
        return attempt


def _give_up_attempt(context: Context, run_id: str, step: int, reason: str) -> None:
    """End an attempt that made nothing to judge; `reason` is a sentence of ours, which names nobody."""
    with session(context.engine) as s:
        attempt = _attempt(s, run_id, step)
        attempt.verdict, attempt.reasons, attempt.finished_at = "UNDETERMINED", [reason], context.now()
        s.add(attempt)
        s.commit()
    log.warning("unlearning.no_candidate", step=step, method=attempt.method, reason=reason)


def _attempt(s: Session, run_id: str, step: int) -> Attempt:
    return s.exec(select(Attempt).where(Attempt.run_id == run_id, Attempt.step == step)).one()


def _passed(s: Session, run_id: str) -> Attempt:
    query = select(Attempt).where(Attempt.run_id == run_id, Attempt.verdict == "PASSED").order_by(col(Attempt.step))
    return s.exec(query).one()


def _write_report(context: Context, policy: Policy, evaluation: Evaluation, run_id: str, attempt: Attempt) -> None:
    """The report's page and figures; they name the run, never a person, and show no photograph.

    If the operator allows it, a second page with the photographs lies in the run's folder until the purge.
    """
    plan, recipe = planning.load(context, run_id), data.recipe_of(context)
    share = evaluation.cost_share
    report = report_of(
        evaluation,
        title=f"Audit of run {run_id[:8]}, step {attempt.step + 1}",
        subject=f"{attempt.method} on {len(plan.forget)} images of model line {LINE}",
        created_at=context.now(),
        provenance={
            "Run": run_id,
            "Seed of the method": str(attempt.seed),
            "Recipe": f"{recipe.name} ({recipe.digest[:16]}…)",
            "Data manifest": plan.manifest_digest,
            "Policy logged": f"{policy.digest} before the run",
            "Device": describe_device(resolve_device(context.settings.device)),
            **library_versions(),
        },
        cost={} if share is None else {"Time, as a share of retraining": f"{share:.1%}"},
    )
    write(report, context.settings.reports_folder / run_id, name=f"step-{attempt.step}")
    if context.settings.report_photographs:
        images = planning.faces_at(context, plan).images[plan.forget]
        page = render_html(replace(report, thumbnails=[to_png(image) for image in images]))
        (RunFolder(context.settings, run_id).path / f"step-{attempt.step}-photographs.html").write_text(page)


def _to_json(outcome: Outcome) -> dict[str, Any]:
    return {**vars(outcome), "margins": outcome.margins.tolist()}


def _need(bank: Bank | None, what: str) -> Bank:
    if bank is None:
        raise FileNotFoundError(f"Expected a complete {what}, found none; the run's step is repeated.")
    return bank
