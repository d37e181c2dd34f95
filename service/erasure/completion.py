"""The end of a run: the purge, then certificates and completed requests."""

from __future__ import annotations

import structlog
from sqlmodel import select

from service.banks import build, replica
from service.banks.blocks import forget_from_blocks
from service.banks.qualifications import forget_probes
from service.banks.spares import registration_lock
from service.erasure import leftovers, purge_record
from service.erasure.certificates import Issuer
from service.erasure.evidence import forget_reports
from service.erasure.purge_record import PurgeRecord
from service.erasure.workspace import Workspace
from service.errors import RunStoppedError
from service.models import destruction
from service.requests import states
from service.requests.runs import get_run, release_line, requests_of
from service.store import ledger
from service.store.engine import reading, scrub_free_pages, session
from service.store.tables import Attempt
from service.training.jobs import release_processes
from unlearning.faces import remove_subjects
from unlearning.faces.packing import folder_digest

log = structlog.get_logger()


def purge(work: Workspace) -> None:
    """Destroy what the service holds of the run's subjects, and every model that remembers them.

    Can be repeated: the record, made before the first file is touched, keeps the count of what is gone already.

    Raises:
        RunStoppedError: something is still there afterwards.
    """
    context, settings, record = work.context, work.context.settings, purge_record.begin(work)
    if record.finished_at is not None:
        return
    context.reached("purging.begun")
    with reading(context.engine) as s:
        requests = requests_of(s, work.run_id)
        subjects = [request.user_id for request in requests if request.user_id is not None]
    release_processes()
    removal = remove_subjects(
        settings.data_folder, subjects,
        known=[name for held in record.held.values() for name in (*held.images, *held.copies)],
        cache=settings.packed_folder,
        reached=lambda point: context.reached(f"purging.{point.replace(' ', '_')}"),
    )  # fmt: skip
    log.info("purge.data_folder", n_copies=removal.n_copies, n_files_no_row_names=removal.n_unnamed)
    context.reached("purging.images")
    tags = [context.keyring.block_hash(subject) for subject in subjects]
    for store in build.stores(settings):
        store.drop_subjects(tags)
        context.reached("purging.columns")
    forget_from_blocks(settings, tags)
    with session(context.engine) as s:
        forget_probes(s, tags)
        s.commit()
    context.reached("purging.blocks")
    replica.follow_erasure(context)
    destruction.destroy_refused(context)
    with registration_lock(settings, exclusive=True):
        destruction.destroy_remembering(context, [request.subject_hash for request in requests])
    destruction.confirm_destroyed(context)
    context.reached("purging.weights")
    work.folder.destroy()  # candidates, the banks of their other seeds, the plan
    forget_reports(settings)
    context.reached("purging.candidates")
    leftovers.sweep(context)
    context.reached("purging.leftovers")
    purge_record.finish(
        work, record, n_unnamed=removal.n_unnamed, data_digest_after=folder_digest(settings.data_folder)
    )
    context.reached("purging.recorded")


def complete(work: Workspace) -> None:
    """Sign and log a certificate for each request, complete it and free the line, in one transaction: exactly once.

    Raises:
        RunStoppedError: the purge was not finished.
    """
    context, run_id = work.context, work.run_id
    with session(context.engine) as s:
        run, now = get_run(s, run_id), context.now()
        if run.finished_at is not None:
            return
        record = purge_record.of(run)
        if record is None or record.destroyed is None:
            raise RunStoppedError("Expected a finished purge before requests are completed; the run goes on with it.")
        passed = s.exec(select(Attempt).where(Attempt.run_id == run_id, Attempt.verdict == "PASSED")).one_or_none()
        requests = requests_of(s, run_id)
        certificate_ids = Issuer(context, run, record.facts).erasures(s, requests, passed, record)
        context.reached("completing.signed")
        ends = [
            (request, {"outcome": outcome_of(record, request.id), "certificate_id": certificate_id})
            for request, certificate_id in zip(requests, certificate_ids, strict=True)
        ]
        states.move_all(s, ends, "completed", now=now)
        run.purge = purge_record.without_names(run)
        run.stage, run.stage_note, run.updated_at, run.finished_at = "completed", "", now, now
        s.add(run)
        release_line(s, run_id)
        ledger.record(s, "run", now=now, run_id=run_id, end="completed")
        s.commit()


def outcome_of(record: PurgeRecord, request_id: str) -> str:
    """The outcome of a completed request."""
    destroyed = (record.destroyed or {}).get(request_id, {})
    return "erased" if any(destroyed.values()) else "no_data_held"


def tidy(work: Workspace) -> None:
    """Destroy what is left of the run's working files, and the deleted values in the database's files."""
    work.folder.destroy()
    work.context.reached("completing.removed")
    scrub_free_pages(work.context.engine)
