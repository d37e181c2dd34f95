"""Making a run's candidate a second time, from the same inputs in a fresh process, and comparing the weights.

This is done for a share of the runs, chosen by `audit.proof.reruns`, before anything is deployed or destroyed.
Afterwards the images, the weights the run began from and its working files are gone, and nobody can make the candidate
again. Equal digests show that the procedure in the certificate makes these weights; unequal ones stop the run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog
from sqlmodel import Session, col, select

from audit.policy import RETRAIN
from audit.proof.reruns import is_chosen, key_commitment
from service.banks.spares import find as find_spare
from service.context import Context
from service.erasure.candidates import spec_of
from service.erasure.workspace import Workspace
from service.errors import ConflictError
from service.requests.runs import get_run, note
from service.store import ledger
from service.store.engine import reading, session
from service.store.tables import Attempt, LogLeaf
from service.training.jobs import run_apart
from service.training.production import made_with
from unlearning import files
from unlearning.methods import find_method

log = structlog.get_logger()


@dataclass(frozen=True)
class Rerun:
    """Whether a run's candidate was made a second time, and which weights that gave; part of the certificate.

    Attributes:
        chosen: whether the keyed hash of the run's id chose it.
        share: of the runs that are chosen, as logged before the run.
        key_sha256: hash of the key that chose, as logged before the run.
        weights_digest: SHA-256 of the second candidate; none if it was not made.
    """

    chosen: bool
    share: float
    key_sha256: str
    weights_digest: str | None


def announcement(context: Context) -> dict[str, str | float]:
    """What the log entry that opens a run says about reruns."""
    return {
        "rerun_share": context.settings.rerun_share,
        "rerun_key_sha256": key_commitment(context.keyring.rerun_key),
    }


def carry_out(work: Workspace) -> str | None:
    """Make the passed candidate again if the run is chosen; gives why the run must stop if it has other weights."""
    with reading(work.context.engine) as s:
        attempt = _candidate(s, work.run_id, passed=True)
    stored = work.folder.read("rerun")
    if stored is None:
        stored = asdict(_decide(work, attempt))
        work.folder.write("rerun", stored)
    rerun = Rerun(**stored)
    if not rerun.chosen or rerun.weights_digest == attempt.candidate_digest:
        return None
    then, now = attempt.figures["made_with"], made_with(work.context)
    why = "by the same versions on the same device" if then == now else f"first with {then}, then with {now}"
    return (
        f"Made a second time, {why}, the candidate has other weights; nothing was deployed or destroyed. Look for what "
        "the seed does not determine, then approve the request to start anew."
    )


def repeat(context: Context, run_id: str) -> tuple[str, str]:
    """Make an open run's latest candidate again because somebody asked; gives the digests of the first and the second.

    Raises:
        NotFoundError: no such run.
        ConflictError: there is nothing left to make it from, or no candidate yet.
    """
    with reading(context.engine) as s:
        run = get_run(s, run_id)
        if run.purge is not None:
            raise ConflictError(
                f"Expected a run whose inputs are still here; run {run_id} is {run.stage}: the images, the weights it "
                "began from and its working files are destroyed, so it cannot be made again. Its certificate says "
                "whether it was made a second time before that."
            )
        if run.finished_at is not None:
            raise ConflictError(
                f"Expected an open run; run {run_id} ended as {run.stage}, its candidates are destroyed."
            )
        attempt = _candidate(s, run_id, passed=False)
    return _make_again(Workspace(context, run_id), attempt, asked_by="operator")


def _decide(work: Workspace, attempt: Attempt) -> Rerun:
    context, run_id = work.context, work.run_id
    own = announcement(context)
    with reading(context.engine) as s:
        logged = _announced(s, run_id) or own
    share, commitment = float(logged["rerun_share"]), str(logged["rerun_key_sha256"])
    # If the key was exchanged since, nobody can say any more whether it chose this run: the run is made again.
    chosen = commitment != own["rerun_key_sha256"] or is_chosen(context.keyring.rerun_key, run_id, share)
    if not chosen:
        return Rerun(False, share, commitment, None)
    note(context, run_id, f"{attempt.method}: making the candidate a second time")
    _, again = _make_again(work, attempt, asked_by="policy")
    return Rerun(True, share, commitment, again)


def _make_again(work: Workspace, attempt: Attempt, *, asked_by: str) -> tuple[str, str]:
    context, run_id = work.context, work.run_id
    outcome = work.folder.read(f"step-{attempt.step}")
    if outcome is None:
        raise ConflictError(f"Expected a candidate in run {run_id}, found none yet; ask again after its unlearning.")
    first = str(outcome["weights_digest"])
    weights, spare = (work.folder.path / f"again-{what}-{asked_by}.safetensors" for what in ("candidate", "spare"))
    spec = spec_of(work, attempt.method)
    if find_method(attempt.method).needs_spare:
        spec = replace(spec, base_weights=spare, base_digest=_spare_again(work, spare))
    again = str(run_apart(spec, attempt.seed, context.settings, weights).weights_digest)
    files.destroy(weights, spare)
    with session(context.engine) as s:
        now = context.now()
        ledger.record(
            s, "rerun", now=now, run_id=run_id, step=attempt.step, weights=first, again=again, asked_by=asked_by
        )
        s.commit()
    log.info("rerun.done", run_id=run_id, step=attempt.step, equal=first == again, asked_by=asked_by)
    return first, again


def _spare_again(work: Workspace, weights: Path) -> str:
    """Train the spare that the run began with a second time; gives its digest.

    Raises:
        ConflictError: the data it learned from changed since.
    """
    plan, context, faces = work.plan, work.context, work.faces
    forget = {faces.people[index] for index in faces.subject_of[plan.forget]}
    known = find_spare(context, work.recipe, faces, forget, only=plan.spare)
    if known is None:
        raise ConflictError(
            "Expected the data that the run's spare learned from to be as they were, but they changed, so it cannot be "
            "trained a second time. Approve the request to start anew."
        )
    spec = replace(spec_of(work, RETRAIN), retain=known.rows)
    return str(run_apart(spec, known.seed, context.settings, weights).weights_digest)


def _candidate(s: Session, run_id: str, *, passed: bool) -> Attempt:
    """The attempt that passed, or the latest one."""
    query = select(Attempt).where(Attempt.run_id == run_id).order_by(col(Attempt.step).desc())
    attempt = s.exec(query.where(Attempt.verdict == "PASSED") if passed else query).first()
    if attempt is None:
        raise ConflictError(f"Expected a candidate in run {run_id}, found none yet; ask again after its unlearning.")
    return attempt


def _announced(s: Session, run_id: str) -> dict[str, str | float] | None:
    """The log entry that opened the run; none if the entry says nothing of reruns, as those of earlier releases."""
    query = select(LogLeaf.entry).where(LogLeaf.kind == "policy", col(LogLeaf.entry).contains(run_id))
    entries = [json.loads(entry) for entry in s.exec(query)]
    return next((entry for entry in entries if "rerun_share" in entry), None)
