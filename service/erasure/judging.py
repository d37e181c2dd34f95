"""Auditing a step's candidate: the evidence, the report, the log entry, and the certificate of one that failed.

Tested in `tests/service/erasure/test_candidates.py`.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import structlog

from audit.errors import BankError
from audit.evaluation import Evaluation, Evidence, Views, evaluate
from audit.report.content import report_of
from audit.report.page import render_html, write
from audit.statistics.spread import pooled_spread
from service.banks.build import columns_of, example_ids, views_of
from service.banks.qualifications import Qualified
from service.banks.store import Bank, BankStore
from service.context import LINE
from service.erasure import candidates
from service.erasure.candidates import (
    attempt_of,
    original_outcome,
    outcome_of,
    qualification_of,
    spec_of,
    unlearned_bank_plan,
)
from service.erasure.certificates import Issuer
from service.erasure.evidence import kept
from service.erasure.looking import looks_of
from service.erasure.plan import RunPlan
from service.erasure.price import price, rows
from service.erasure.purge_record import Facts
from service.erasure.references import (
    bank_plan,
    gather,
    oracle_bank,
    originals,
    other_forget_sets,
)
from service.erasure.workspace import Workspace
from service.models.manifest import library_versions
from service.requests.runs import get_run, note, requests_of
from service.store import ledger
from service.store.engine import reading, session
from service.store.tables import Attempt
from unlearning.devices import describe_device, resolve_device
from unlearning.faces.decoding import to_png
from unlearning.methods import METHODS

log = structlog.get_logger()


def judge(work: Workspace, step: int) -> bool:
    """Audit the step's candidate; gives whether it passed. Writes report, log entry and, if it failed, certificate.

    Where the bank that judges is gone, the run is planned again, and the candidate is made again if the plan changed.
    """
    context, run_id, policy = work.context, work.run_id, work.policy
    with reading(context.engine) as s:
        attempt = attempt_of(s, run_id, step)
    if attempt.verdict is not None:
        return attempt.verdict == "PASSED"
    bank = gather(work)
    if candidates.unlearn(work, step) is not None:  # nothing is made, unless the plan changed or a file is missing
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
    outcome = outcome_of(work, step)
    figures = {
        **kept(evaluation.to_dict(), context.settings),
        "margin_means": _margin_means(evaluation.evidence),
        "served": {name: value for name, value in outcome["served"].items() if name != "views"},
        "made_with": outcome["made_with"],
        "price": {**priced, **({"order": work.plan.order} if work.plan.order else {})},
    }
    with session(context.engine) as s:
        now = context.now()
        attempt = attempt_of(s, run_id, step)
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


def _evidence(work: Workspace, step: int, method: str, bank: Bank) -> Evidence:
    """What the auditor judges by: margins and accuracies of the candidate, of the model before, and of both banks."""
    spec, ids = spec_of(work, method), example_ids(work.faces, work.plan.forget)
    candidate, original = outcome_of(work, step), original_outcome(work, spec)
    unlearned: Bank | None = None
    cost_share: float | None = None
    qualified = qualification_of(work, method)  # once more: it may have expired meanwhile
    if not METHODS[method].exact and work.policy.qualification:
        cost_share = candidate["seconds"] / float(np.median(bank.seconds))
    elif not METHODS[method].exact:
        store, key = BankStore(work.folder.unlearned()), unlearned_bank_plan(work, spec).key
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
        looks=looks_of(work, candidate.get("looks"), bank),
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


def _margin_means(evidence: Evidence) -> dict[str, float]:
    """Mean margin over the forget set: of the model before, of the candidate, of the references and their spread."""
    retrained = evidence.retrained.mean(axis=1)  # (n_models,)
    return {
        "original": float(evidence.original.mean()),
        "deployed": float(evidence.deployed.mean()),
        "retrained": float(retrained.mean()),
        "retrained_deviation": float(retrained.std(ddof=1)),
    }


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
            "Candidate scored as served": _served_in_words(outcome_of(work, attempt.step)["served"]),
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
