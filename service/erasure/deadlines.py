"""Near deadlines: from then on trainings no longer stand back behind predictions."""

from __future__ import annotations

import time
from datetime import timedelta

import structlog
from sqlmodel import col, func, select

from service.context import Context
from service.requests.states import ENDS
from service.store.engine import reading
from service.store.felt import Board
from service.store.tables import ErasureRequest

log = structlog.get_logger()


class Deadlines:
    """The worker's look at them; `tend` is called often."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._board = Board(context.settings.training_board_path)
        self._is_near = False

    def tend(self) -> None:
        """Tell whoever governs trainings whether the deadline of a request that a run is at, or will be, is near."""
        now, hours = self._context.now(), self._context.settings.training_deadline_hours
        waiting = col(ErasureRequest.state).not_in({*ENDS, "needs_attention"})  # those no training brings on
        with reading(self._context.engine) as s:
            due_at = s.exec(select(func.min(ErasureRequest.due_at)).where(waiting)).one()
        is_near = due_at is not None and due_at < now + timedelta(hours=hours)
        if is_near != self._is_near:
            self._is_near = is_near
            left = None if due_at is None else round((due_at - now).total_seconds() / 3600, 1)
            log.info("deadline.near" if is_near else "deadline.no_longer_near", hours_left=left, near_hours=hours)
        if is_near:
            self._board.press(time.monotonic())
        else:
            self._board.relax()
