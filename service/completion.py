"""The end of a run: destruction, then certificates and completed requests."""

from __future__ import annotations

from datetime import datetime

import structlog
from sqlmodel import select

from audit.policy import Policy
from service import banks, ledger, planning, registry, states, stored_banks
from service.blocks import forget_from_blocks
from service.certificates import Issuer, Purged
from service.context import Context
from service.db import reading, scrub_free_pages, session
from service.evidence import forget_reports
from service.runs import RunFolder, get_run, release_line, requests_of
from service.tables import Attempt
from service.trials import release_processes
from unlearning import files
from unlearning.faces import remove_subjects
from unlearning.faces.dataset import METADATA
from unlearning.faces.packing import folder_digest

log = structlog.get_logger()


def purge(context: Context, run_id: str) -> None:
    """Destroy what the service holds of the run's people, and every model that remembers them.

    Safe to repeat: what is gone stays gone. Images and columns were counted when the run was planned, so that a kill in
    the middle does not lose the count.
    """
    settings, folder = context.settings, RunFolder(context.settings, run_id)
    if folder.read("purged") is not None:
        return
    with reading(context.engine) as s:
        requests = requests_of(s, run_id)
        subjects = [request.user_id for request in requests if request.user_id is not None]
    release_processes()
    if (settings.data_folder / METADATA).exists():
        remove_subjects(
            settings.data_folder, subjects, reached=lambda point: context.reached(f"purging.{point.replace(' ', '_')}")
        )
    context.reached("purging.images")
    tags = [context.keyring.block_hash(subject) for subject in subjects]
    for store in banks.stores(settings):
        store.drop_subjects(tags)
        context.reached("purging.columns")
    forget_from_blocks(settings, tags)
    context.reached("purging.blocks")
    stored_banks.follow_erasure(context)
    older = registry.destroy_refused(context)  # also what an earlier run of these people, stopped here, left behind
    registry.destroy_remembering(context, [request.subject_hash for request in requests])
    registry.confirm_destroyed(context)
    context.reached("purging.weights")
    for path in sorted([*folder.path.glob("*.safetensors"), *folder.path.glob("*.html")]):
        files.zero(path)
        path.unlink()
    forget_reports(settings)
    context.reached("purging.candidates")
    data_digest = folder_digest(settings.data_folder) if (settings.data_folder / METADATA).exists() else ""
    at = context.now().isoformat()
    folder.write("purged", {"n_older_versions": len(older), "data_digest_after": data_digest, "finished_at": at})
    context.reached("purging.recorded")


def complete(context: Context, policy: Policy, run_id: str) -> None:
    """Sign and log a certificate for each request, complete it, free the line; one transaction, so exactly once."""
    folder = RunFolder(context.settings, run_id)
    with session(context.engine) as s:
        run, now = get_run(s, run_id), context.now()
        if run.finished_at is not None:
            return
        plan, left = planning.load(context, run_id), folder.read("purged") or {}
        purged = Purged(
            left["n_older_versions"], left["data_digest_after"], datetime.fromisoformat(left["finished_at"]),
            folder.read("barrier"),
        )  # fmt: skip
        passed = s.exec(select(Attempt).where(Attempt.run_id == run_id, Attempt.verdict == "PASSED")).one_or_none()
        issuer = Issuer(context, policy, run, plan)
        requests = requests_of(s, run_id)
        certificate_ids = issuer.erasures(s, requests, passed, purged, folder.read("rerun"))
        context.reached("completing.signed")
        ends = [
            (request, {"outcome": outcome_of(plan, request.id), "certificate_id": certificate_id})
            for request, certificate_id in zip(requests, certificate_ids, strict=True)
        ]
        states.move_all(s, ends, "completed", now=now)
        run.stage, run.stage_note, run.updated_at, run.finished_at = "completed", "", now, now
        s.add(run)
        release_line(s, run_id)
        ledger.record(s, "run", now=now, run_id=run_id, end="completed")
        s.commit()


def outcome_of(plan: planning.RunPlan, request_id: str) -> str:
    """What became of a completed request."""
    return "erased" if plan.images_of.get(request_id) or plan.older_of.get(request_id) else "no_data_held"


def tidy(context: Context, run_id: str) -> None:
    """Nothing of the run's working files stays, and no deleted value lingers in the database's files."""
    RunFolder(context.settings, run_id).destroy()
    context.reached("completing.removed")
    scrub_free_pages(context.engine)
