"""Putting the certified candidate into service: its version, the swap of all serving processes, and the barrier.

Tested in `tests/service/erasure/test_candidates.py`.
"""

from __future__ import annotations

import structlog
from sqlmodel import Session, col, select

from audit.policy import RETRAIN
from service.erasure.candidates import parent_of
from service.erasure.plan import as_rows
from service.erasure.workspace import Workspace
from service.errors import RunStoppedError
from service.models import networks, registry, rosters, shadowing
from service.models.deployment import deploy as swap
from service.requests.runs import get_run, note, requests_of
from service.store.engine import reading, session
from service.store.tables import Attempt
from unlearning.models import weights_digest

log = structlog.get_logger()


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
            "lineage": {"method": attempt.method, "parent": parent_of(work, attempt.method), "run_id": run.id},
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
        parents = rosters.read(s, parent_of(work, method))
        gone = {request.subject_hash for request in requests_of(s, work.run_id)}
    if not parents:
        return None
    if method == "spare":
        return parents
    return {each: n for each, n in (retained | parents).items() if each not in gone}


def _passed(s: Session, run_id: str) -> Attempt:
    query = select(Attempt).where(Attempt.run_id == run_id, Attempt.verdict == "PASSED").order_by(col(Attempt.step))
    return s.exec(query).one()
