"""How many people the service holds data of: what the share of a mass deletion is reckoned from.

Serving processes on a machine without the data folder read what the worker last wrote down.

Tested in `tests/service/banks/test_replica.py`.
"""

from __future__ import annotations

import structlog

from service.context import LINE, Context
from service.store.engine import reading, session
from service.store.tables import WorkerLease
from unlearning.faces import count_subjects

log = structlog.get_logger()


def people_held(context: Context) -> int:
    """People of the data folder, or where none can be read, those of the worker's when it last looked; 0 if unknown."""
    found = count_subjects(context.settings.data_folder)
    if found is not None:
        return found
    with reading(context.engine) as s:
        lease = s.get(WorkerLease, LINE)
    return (lease and lease.n_subjects) or 0


def write_down(context: Context) -> None:
    """The worker's side; a table that cannot be read is somebody else's to complain of."""
    n_people = count_subjects(context.settings.data_folder)
    if n_people is None:
        log.warning("people.not_counted")
        return
    with session(context.engine) as s:
        lease = s.get(WorkerLease, LINE)
        if lease is not None and lease.n_subjects != n_people:
            lease.n_subjects = n_people
            s.add(lease)
            s.commit()
