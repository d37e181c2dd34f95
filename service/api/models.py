"""What the API tells of model versions, of what each line serves, and of roll-backs.

Tested in `tests/service/requests/test_views.py`.
"""

from __future__ import annotations

from sqlmodel import col, select

from service.api.schemas import Model, ModelLine, Models, Rollback, Rollbacks, ServingProcess
from service.context import Context
from service.errors import NotFoundError
from service.models import rollbacks
from service.store.engine import fit_id, reading
from service.store.tables import Deployment, ModelVersion, RollbackOrder, ServingWorker


def models(context: Context) -> Models:
    """Model versions, and what each line serves with which processes."""
    now = context.now()
    with reading(context.engine) as s:
        versions = list(s.exec(select(ModelVersion).order_by(col(ModelVersion.created_at).desc())))
        pointers = list(s.exec(select(Deployment).order_by(col(Deployment.line))))
        workers = list(s.exec(select(ServingWorker).order_by(col(ServingWorker.started_at))))
        refusals = {version.digest: rollbacks.refusal(s, context, version) for version in versions}
    serving = [
        ServingProcess.model_validate({**worker.model_dump(), "lease_is_fresh": now < worker.lease_until})
        for worker in workers
    ]
    lines = [
        ModelLine.model_validate({**row.model_dump(), "serving": [each for each in serving if each.line == row.line]})
        for row in pointers
    ]
    shown = [Model.model_validate({**row.model_dump(), "rollback_refusal": refusals[row.digest]}) for row in versions]
    return Models(lines=lines, models=shown)


def rollback(context: Context, rollback_id: str) -> Rollback:
    """One order.

    Raises:
        NotFoundError: no such order.
    """
    with reading(context.engine) as s:
        placed = s.get(RollbackOrder, rollback_id) if fit_id(rollback_id) else None
    if placed is None:
        raise NotFoundError("There is no such rollback.")
    return Rollback.model_validate(placed.model_dump())


def rollback_list(context: Context, limit: int) -> Rollbacks:
    """The latest orders, newest first."""
    with reading(context.engine) as s:
        newest = select(RollbackOrder).order_by(col(RollbackOrder.ordered_at).desc(), col(RollbackOrder.id))
        return Rollbacks(rollbacks=[Rollback.model_validate(row.model_dump()) for row in s.exec(newest.limit(limit))])
