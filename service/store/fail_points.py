"""Places where a test may have a process die as a machine does without power: SIGKILL, once, at the point it names.

`EXPUNGE_FAIL_AT` names one of them; `tests/faults` goes through them all. A point stands between two effects that are
durable one by one: what it shows is that the second is made good after a restart, and the first not repeated.

Tested in `tests/faults/test_faults.py`.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from service.settings import Settings

FAIL_POINTS: Final = (
    "claimed",  # the run is committed, its workflow not started
    "unlearning.start",
    "unlearning.packed",  # images packed, no plan
    "unlearning.planned",  # the plan is in its file, the step not recorded
    "unlearning.references",  # half of the reference models
    "unlearning.references_built",
    "unlearning.attempt",  # the attempt's row, no weights
    "unlearning.weights",  # candidate weights written, not recorded
    "unlearning.recorded",
    "unlearning.bank",  # half of an approximate method's other seeds
    "unlearning.end",
    "auditing.start",
    "auditing.evaluated",  # judged, nothing written
    "auditing.reported",  # report written, no verdict
    "auditing.signed",  # a failed candidate's certificate signed, not committed
    "auditing.stored",
    "auditing.end",
    "rerun.start",
    "rerun.end",
    "deploying.start",
    "deploying.row",  # the version's row, no file
    "deploying.written",  # its file beside the final name
    "deploying.registered",
    "deploying.staging",  # the pointer names it, nobody has loaded it
    "deploying.staged",  # all have loaded it, not committed
    "deploying.pointer",  # the pointer moved, the commit word did not
    "deploying.committed",  # both moved, the barrier not reached
    "deploying.barrier",  # reached, not recorded
    "deploying.end",
    "purging.start",
    "purging.begun",  # what there is to destroy is recorded, nothing destroyed
    "purging.overwritten",  # a file of packed images is zeros
    "purging.pack_destroyed",
    "purging.copy_destroyed",  # of one of the person's images, which are all there
    "purging.image_destroyed",  # the first of the person's files, the others there
    "purging.new_table_written",
    "purging.old_table_linked",
    "purging.table_replaced",
    "purging.images",
    "purging.columns",  # in the first store of banks only
    "purging.blocks",
    "purging.marked",  # an older version's row says destroyed, its file is there
    "purging.weights",
    "purging.candidates",
    "purging.leftovers",
    "purging.recorded",
    "purging.end",
    "completing.signed",  # certificates signed and logged, nothing committed
    "completed",  # committed, working files there
    "completing.removed",  # working files gone, the database not scrubbed
    "completing.tidied",
)

"""Points of a run, in their order."""

OUTSIDE_RUNS: Final = (
    "training.packed",  # the production model's images are packed
    "training.saved",  # its weights in a folder of their own, not registered
    "training.registered",  # not in service
    "rotation.retired",  # the public half is retired, the key still signs
    "rotation.written",  # the new private key beside the old one
    "rotation.linked",  # the old one has two names
    "rotation.replaced",  # the old one has a name of its own
    "building.model",  # a reference model while no run is open
)
"""Points of `expunge train`, `expunge keys rotate-signing` and `expunge references`."""

SHADOWING: Final = (
    "shadowing.begun",  # the comparison is open, nothing was compared
    "shadowing.ended",  # the counts are added up, the bar was not asked
)
"""Points of a run whose candidate answers live predictions too, between `deploying.staged` and `deploying.pointer`."""

BACKUPS: Final = (
    "backup.database",  # the database's copy is made, nothing of it in the file
    "backup.data",  # keys and data in the file
    "backup.files",  # everything in it but the manifest
    "backup.written",  # the file is whole, beside its name
)
"""Points of `expunge backup`."""

RESTORES: Final = (
    "restore.extracted",  # all files there and compared
    "restore.taken_over",  # the newer records in the database
    "restore.settled",  # erasures filed, the home whole
    "restore.placed",  # it has a name that counts, nothing is in its place
    "restore.moved",  # its first entry is in its place
)
"""Points of `expunge restore`."""

_MARK: Final = "failed-at-"


def reached(settings: Settings, point: str) -> None:
    """Die here if the settings name this point and no process of this home died at it before."""
    if settings.fail_at != point:
        return
    mark = settings.home / f"{_MARK}{point}"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def is_mark(name: str) -> bool:
    """Whether a file of the home only says that a process died at a point."""
    return name.startswith(_MARK)
