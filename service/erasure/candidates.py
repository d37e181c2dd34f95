"""Making a candidate by one step of the ladder, judging it, and putting the certified one into service."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
from sqlmodel import Session, col, select

from audit.errors import BankError
from audit.evaluation import Evaluation, Evidence, Views, evaluate
from audit.policy import RETRAIN
from audit.qualification import Bars
from audit.report.content import report_of
from audit.report.page import render_html, write
from audit.statistics.spread import pooled_spread
from service.banks.build import BankPlan, build_bank, columns_of, example_ids, views_of
from service.banks.qualifications import Qualified, count_subjects, find_valid
from service.banks.store import Bank, BankStore
from service.context import LINE
from service.erasure.certificates import Issuer
from service.erasure.evidence import kept
from service.erasure.ladder import steps
from service.erasure.plan import RunPlan, as_rows
from service.erasure.price import price, rows
from service.erasure.purge_record import Facts
from service.erasure.references import (
    bank_plan,
    gather,
    noting,
    oracle_bank,
    oracle_margins,
    originals,
    other_forget_sets,
)
from service.erasure.workspace import Workspace
from service.errors import NotFoundError, PoorModelError, RunStoppedError, WeightsError
from service.inference.network import network_for
from service.models import networks, registry, rosters, shadowing
from service.models.building import build_model
from service.models.deployment import deploy as swap
from service.requests.runs import get_run, note, requests_of
from service.settings import Settings
from service.store import ledger
from service.store.engine import reading, session
from service.store.tables import Attempt, Run
from service.training.answers import refusal
from service.training.jobs import Outcome, run_trials, score
from service.training.production import library_versions, made_with
from service.training.served import score_as_served
from service.training.spec import TrialSpec
from unlearning import files
from unlearning.devices import describe_device, resolve_device
from unlearning.errors import MethodError, RecipeError
from unlearning.faces.decoding import to_png
from unlearning.methods import METHODS
from unlearning.models import load_weights, weights_digest
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
    if isinstance(found := _qualification(work, method), str):
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
    if folder.read(f"step-{step}") is None:
        note(context, work.run_id, f"{method}: making the candidate")
        seeds, settings = [seed_of(work.run, step)], _where(work, method)
        (outcome,) = run_trials(spec, seeds, settings, keep_weights=folder.weights(step))
        context.reached("unlearning.weights")
        folder.write(f"step-{step}", {**_to_json(outcome), "made_with": made_with(context)})
        context.reached("unlearning.recorded")
    recipe = work.recipe
    candidate = fresh_model(recipe, len(work.faces.classes))
    load_weights(candidate, folder.weights(step))
    if (reason := refusal(f"the candidate of {method}", candidate, work.faces, as_rows(work.plan.retain))) is not None:
        raise PoorModelError(reason)
    _score_as_served(work, step, spec, method)
    if METHODS[method].exact or work.policy.qualification:
        return
    on_progress = noting(work, f"{method}: unlearned models", half="unlearning.bank")
    store, planned = BankStore(folder.unlearned()), _unlearned_bank_plan(work, spec)
    build_bank(store, planned, work.policy.n_models, context.settings, on_progress, now=context.now())


def _where(work: Workspace, method: str) -> Settings:
    """Settings by which the method's candidate is made and scored.

    A spare has nothing to train, and a process of its own would take seconds to start.
    """
    settings = work.context.settings
    return settings.model_copy(update={"jobs": 1, "cluster": ""}) if method == "spare" else settings


def _score_as_served(work: Workspace, step: int, spec: TrialSpec, method: str) -> None:
    """Record what the serving engine makes of the step's candidate, unless it is recorded."""
    outcome, folder = _outcome(work, step), work.folder
    if "served" in outcome:
        return
    digest = outcome["weights_digest"]
    like = digest if method == "spare" else work.run.base_digest  # a spare is registered, and comes with its own
    manifest = registry.Manifest.from_dict(registry.get(work.context, like).manifest)
    if (network := network_for(work.context, manifest)) is not None:
        files.overwrite(folder.network(step), network)
    served = score_as_served(spec, manifest, folder.weights(step), digest, _where(work, method), network)
    in_float32 = np.array(outcome["views"], dtype=np.float32)
    folder.write(f"step-{step}", {**outcome, "served": served.to_dict(in_float32)})


def _qualification(work: Workspace, method: str) -> Qualified | str | None:
    """The method's qualification, or why it has none; None where the policy asks for none."""
    if METHODS[method].exact or not work.policy.qualification:
        return None
    return find_valid(
        work.context, method=method, options=work.plan.methods[method], recipe=work.recipe,
        n_subjects_now=count_subjects(work.context), bars=Bars.of(work.policy),
    )  # fmt: skip


def judge(work: Workspace, step: int) -> bool:
    """Audit the step's candidate; gives whether it passed. Writes report, log entry and, if it failed, certificate.

    Where the bank that judges is gone, the run is planned again, and the candidate is made again if the plan changed.
    """
    context, run_id, policy = work.context, work.run_id, work.policy
    with reading(context.engine) as s:
        attempt = _attempt(s, run_id, step)
    if attempt.verdict is not None:
        return attempt.verdict == "PASSED"
    bank = gather(work)
    if unlearn(work, step) is not None:  # nothing is made, unless the plan changed or a file is missing
        return False
    note(context, run_id, f"{attempt.method}: audit")
    started = time.perf_counter()
    evidence = _evidence(work, step, attempt.method, bank)
    evaluation = evaluate(evidence, policy, rung=policy.ladder.index(attempt.method), seed=work.run.seed)
    context.reached("auditing.evaluated")
    used = work.plan.spare if METHODS[attempt.method].needs_spare else ""
    priced = price(work, step, bank, oracle_bank(work), used=used)
    _write_report(work, evaluation, attempt, priced)
    context.reached("auditing.reported")
    log.info("audit.done", step=step, verdict=evaluation.verdict, seconds=time.perf_counter() - started)
    passed = evaluation.verdict == "PASSED"
    outcome = _outcome(work, step)
    figures = {
        **kept(evaluation.to_dict(), context.settings),
        "margin_means": _margin_means(evaluation.evidence),
        "served": {name: value for name, value in outcome["served"].items() if name != "views"},
        "made_with": outcome["made_with"],
        "price": {**priced, **({"order": work.plan.order} if work.plan.order else {})},
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
            attempt.certificate_id = Issuer(context, run, Facts.of(work)).failure(s, attempt, commitments)
            context.reached("auditing.signed")
        s.add(attempt)
        s.commit()
    context.reached("auditing.stored")
    return passed


def deploy(work: Workspace) -> str | None:
    """Register the certified weights, swap every serving process to them, keep the barrier's rows with the run.

    Returns:
        None, or a sentence that says why the candidate was not put into service.
    """
    context, run, folder = work.context, work.run, work.folder
    with reading(context.engine) as s:
        attempt = _passed(s, run.id)
    weights = folder.weights(attempt.step)
    if weights_digest(weights) != attempt.candidate_digest:
        raise ValueError("Expected the audited weights in the run's folder, found others; nothing was deployed.")
    base = registry.get(context, run.base_digest)
    manifest = registry.Manifest.from_dict(
        {
            **base.manifest,
            "seed": attempt.seed,
            "versions": attempt.figures["made_with"]["versions"],
            "lineage": {"method": attempt.method, "parent": _parent(work, attempt.method), "run_id": run.id},
        }
    )
    network = _network_of(work, attempt)
    digest = registry.add(context, weights, manifest, _learned_from(work, attempt.method), network=network)
    context.reached("deploying.registered")
    note(context, run.id, "waiting for the serving processes to swap")

    def last_look() -> None:
        shadowing.compare(
            context, run.id, digest, changed_max=lambda: work.policy.shadow_changed_max,
            note=lambda text: note(context, run.id, text),
        )  # fmt: skip

    try:
        barrier = swap(context, digest, forget_older=True, before_commit=last_look)
    except RunStoppedError as error:
        return error.detail
    context.reached("deploying.barrier")
    folder.write("barrier", barrier.to_dict())
    with session(context.engine) as s:
        row = get_run(s, run.id)
        row.generation, row.updated_at = barrier.generation, context.now()
        s.add(row)
        s.commit()
    log.info("run.deployed", generation=barrier.generation)
    return None


def _network_of(work: Workspace, attempt: Attempt) -> bytes | None:
    """The network that the audited candidate was scored by; None if PyTorch computed."""
    wanted = attempt.figures.get("served", {}).get("network")
    if wanted is None:
        return None
    network = work.folder.network(attempt.step).read_bytes()
    if networks.digest_of(network) != wanted:
        raise ValueError("Expected the audited network in the run's folder, found another; nothing was deployed.")
    return network


def _learned_from(work: Workspace, method: str) -> dict[str, int] | None:
    """The candidate's roster: the retained subjects and, unless it was trained from scratch, its parent's.

    A spare that is taken as it is learned from nobody else.

    None if the parent has no roster.
    """
    retained = rosters.of_rows(work.context.keyring, work.faces, as_rows(work.plan.retain))
    if method == RETRAIN:
        return retained
    with reading(work.context.engine) as s:
        parents = rosters.read(s, _parent(work, method))
        gone = {request.subject_hash for request in requests_of(s, work.run_id)}
    if not parents:
        return None
    if method == "spare":
        return parents
    return {each: n for each, n in (retained | parents).items() if each not in gone}


def _evidence(work: Workspace, step: int, method: str, bank: Bank) -> Evidence:
    """What the auditor judges by: margins and accuracies of the candidate, of the model before, and of both banks."""
    spec, ids = spec_of(work, method), example_ids(work.faces, work.plan.forget)
    candidate, original = _outcome(work, step), original_outcome(work, spec)
    unlearned: Bank | None = None
    cost_share: float | None = None
    qualified = _qualification(work, method)  # once more: it may have expired meanwhile
    if not METHODS[method].exact and work.policy.qualification:
        cost_share = candidate["seconds"] / float(np.median(bank.seconds))
    elif not METHODS[method].exact:
        store, key = BankStore(work.folder.unlearned()), _unlearned_bank_plan(work, spec).key
        unlearned = store.find(key, n_models=work.policy.n_models)
        if unlearned is None:
            raise FileNotFoundError("Expected a complete unlearned bank, found none; the run's step is repeated.")
        cost_share = float(np.median(unlearned.seconds) / np.median(bank.seconds))
    return Evidence(
        retrained=columns_of(bank, ids),
        unlearned=columns_of(unlearned, ids) if unlearned else None,
        deployed=np.array(candidate["served"]["views"][0], dtype=np.float64),
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
        staleness=bank_plan(work).staleness,
        views=_views(work, candidate, bank, ids),
        qualification=_said_of(qualified) if isinstance(qualified, Qualified) else None,
    )


def _said_of(qualified: Qualified) -> str:
    return f"{qualified.statement} Its record is entry {qualified.log_index} of the log."


def _views(work: Workspace, candidate: dict[str, Any], bank: Bank, ids: tuple[str, ...]) -> Views:
    """What the gate reads: all views of the forget set, by the candidate, the references and the originals."""
    known, pooled = originals(work), None
    with suppress(BankError):  # too few other blocks, or spreads that cannot be compared: the bank's own is used alone
        pooled = pooled_spread(other_forget_sets(work))
    deployed = np.array(candidate["served"]["views"], dtype=np.float64)
    return Views(deployed, views_of(bank, ids), None if known is None else views_of(known, ids), pooled)


def original_outcome(work: Workspace, spec: TrialSpec) -> Outcome:
    """The model before unlearning, scored like a trial."""
    model = build_model(registry.load_checked(work.context, work.run.base_digest))
    views, retain_accuracy, test_accuracy = score(spec, model)
    return Outcome(-1, views, retain_accuracy, test_accuracy, 0.0, 0, 0, work.run.base_digest)


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
    parent = _parent(work, method)
    return replace(
        spec, method=method, options=plan.methods.get(method), base_digest=parent,
        oracles=oracle_margins(work) if METHODS[method].needs_oracles else None,
        base_weights=registry.bring_here(context, parent),
    )  # fmt: skip


def _parent(work: Workspace, method: str) -> str:
    """Digest of the weights that a method starts from: the model in service, or the run's spare."""
    return work.plan.spare if METHODS[method].needs_spare else work.run.base_digest


def _unlearned_bank_plan(work: Workspace, spec: TrialSpec) -> BankPlan:
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
        attempt = _attempt(s, work.run_id, step)
        attempt.verdict, attempt.reasons, attempt.finished_at = "UNDETERMINED", [reason], work.context.now()
        s.add(attempt)
        s.commit()
    log.warning("unlearning.no_candidate", step=step, method=attempt.method, reason=reason)


def _attempt(s: Session, run_id: str, step: int) -> Attempt:
    return s.exec(select(Attempt).where(Attempt.run_id == run_id, Attempt.step == step)).one()


def _passed(s: Session, run_id: str) -> Attempt:
    query = select(Attempt).where(Attempt.run_id == run_id, Attempt.verdict == "PASSED").order_by(col(Attempt.step))
    return s.exec(query).one()


def _outcome(work: Workspace, step: int) -> dict[str, Any]:
    """What was recorded when the step's candidate was made."""
    outcome = work.folder.read(f"step-{step}")
    if outcome is None:
        raise FileNotFoundError(f"Expected the outcome of step {step} in the run's folder, found none.")
    return outcome


def _write_report(work: Workspace, evaluation: Evaluation, attempt: Attempt, priced: dict[str, Any]) -> None:
    """The report's page and figures; they name the run, never a person, and show no image.

    If the operator allows it, a second page with the images lies in the run's folder until the purge.
    """
    context, plan, recipe = work.context, work.plan, work.recipe
    share = evaluation.cost_share
    report = report_of(
        evaluation,
        title=f"Audit of run {work.run_id[:8]}, step {attempt.step + 1}",
        subject=f"{attempt.method} on {len(plan.forget)} images of model line {LINE}",
        created_at=context.now(),
        provenance={
            "Run": work.run_id,
            "Seed of the method": str(attempt.seed),
            "Recipe": f"{recipe.name} ({recipe.digest[:16]}…)",
            "Data manifest": plan.manifest_digest,
            "Policy logged": f"{work.policy.digest} before the run",
            "Device": describe_device(resolve_device(context.settings.device)),
            "Candidate scored as served": _served_in_words(_outcome(work, attempt.step)["served"]),
            **library_versions(),
        },
        cost=({} if share is None else {"One run of the method, as a share of retraining": f"{share:.1%}"})
        | rows(priced)
        | ({"Order of the ladder, by expected price": _order_in_words(plan)} if plan.order else {}),
    )
    write(report, context.settings.reports_folder / work.run_id, name=f"step-{attempt.step}")
    if context.settings.report_photographs:
        page = render_html(replace(report, thumbnails=[to_png(image) for image in work.faces.images[plan.forget]]))
        (work.folder.path / f"step-{attempt.step}-photographs.html").write_text(page)


def _served_in_words(served: dict[str, Any]) -> str:
    far = f"{served['largest_difference']:.2g}"
    return f"by {served['backend']} in {served['dtype']}; its margins are at most {far} from those in float32"


def _order_in_words(plan: RunPlan) -> str:
    return " ".join(f"{rung['method']}: {rung['why']}" for rung in plan.order)


def _to_json(outcome: Outcome) -> dict[str, Any]:
    return {**vars(outcome), "views": outcome.views.tolist()}
