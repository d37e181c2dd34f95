"""What reference banks there are, block by block: read from the database by pages and metrics.

The worker and `expunge references build` write these rows as banks are built, grow stale and are rebuilt
(`service.banks.refresh`); who only wants to show them reads `overview`, one short query.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlmodel import col, select

from service.context import LINE, Context
from service.store.engine import reading
from service.store.tables import ReferenceBlock

STATES = ("fresh", "stale", "outdated", "building", "missing")
"""fresh: trained on exactly the data as they are; stale: people were erased since, within the policy's bar; outdated:
beyond it, so a request would wait for a new bank; building: no bank that may judge, but one that is under way;
missing: none."""


@dataclass(frozen=True)
class BlockReferences:
    """The references of one block of people.

    Attributes:
        block: the block's name; says nothing about who is in it.
        state: one of `STATES`.
        n_people: people of the training split in the block.
        n_models, n_wanted: finished models, and how many the policy asks for.
        n_next: finished models of the bank of the present data; where a stale bank judges, how far its successor is.
        n_learned, n_gone, staleness: people the models learned from, how many of them were erased since or wait to be,
            and that as a share in [0, 1].
        bank: digest of the bank's key, or none.
        age_seconds: since the bank was begun; none without a bank.
        updated_at: when these figures were taken.
    """

    block: str
    state: str
    n_people: int
    n_models: int
    n_wanted: int
    n_next: int
    n_learned: int
    n_gone: int
    staleness: float
    size_bytes: int
    cost_seconds: float
    bank: str | None
    age_seconds: float | None
    updated_at: datetime


@dataclass(frozen=True)
class BankOverview:
    """Every block's references, in the order of the blocks' names."""

    blocks: tuple[BlockReferences, ...]

    def count(self, state: str) -> int:
        """Blocks in a state of `STATES`."""
        return sum(block.state == state for block in self.blocks)

    @property
    def n_models(self) -> int:
        """Finished models, none counted beyond what is wanted."""
        return sum(min(block.n_models, block.n_wanted) for block in self.blocks)

    @property
    def n_wanted(self) -> int:
        """Models the policy asks for, over all blocks."""
        return sum(block.n_wanted for block in self.blocks)

    @property
    def staleness(self) -> float:
        """The largest staleness of a bank that may judge."""
        return max((block.staleness for block in self.blocks if block.state in ("fresh", "stale")), default=0.0)

    @property
    def size_bytes(self) -> int:
        """Of all banks named here, on the disk."""
        return sum(block.size_bytes for block in self.blocks)

    @property
    def cost_seconds(self) -> float:
        """Training time of all models named here, seconds of one core."""
        return sum(block.cost_seconds for block in self.blocks)


def overview(context: Context) -> BankOverview:
    """The references as they were last seen; no blocks before the worker first looked."""
    now = context.now()
    with reading(context.engine) as s:
        query = select(ReferenceBlock).where(ReferenceBlock.line == LINE).order_by(col(ReferenceBlock.block))
        rows = list(s.exec(query))
    return BankOverview(
        tuple(
            BlockReferences(
                block=row.block,
                state=row.state,
                n_people=row.n_people,
                n_models=row.n_models,
                n_wanted=row.n_wanted,
                n_next=row.n_next,
                n_learned=row.n_learned,
                n_gone=row.n_gone,
                staleness=row.staleness,
                size_bytes=row.size_bytes,
                cost_seconds=row.cost_seconds,
                bank=row.bank,
                age_seconds=(now - row.begun_at).total_seconds() if row.begun_at else None,
                updated_at=row.updated_at,
            )
            for row in rows
        )
    )
