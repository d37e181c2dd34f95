"""The log in the database."""

from __future__ import annotations

import pytest

from audit.proof import log
from service.context import Context
from service.store import ledger
from service.store.engine import session

pytestmark = pytest.mark.both_databases


def test_entries_are_numbered_and_proven(context: Context) -> None:
    with session(context.engine) as s:
        indexes = [ledger.record(s, "policy", now=context.now(), run_id=str(n)) for n in range(5)]
        hashes = ledger.leaf_hashes(s)
        s.commit()
    assert indexes == [0, 1, 2, 3, 4]
    head = log.verify_checkpoint(ledger.checkpoint(hashes, context.keyring.signing_key), [context.keyring.public_key])
    assert head is not None
    assert head.size == 5
    for index in indexes:
        assert log.verify_inclusion(index, 5, hashes[index], log.inclusion_proof(index, hashes), head.root)


def test_a_rolled_back_entry_leaves_no_hole(context: Context) -> None:
    with session(context.engine) as s:
        ledger.record(s, "policy", now=context.now())
        s.rollback()
    with session(context.engine) as s:
        assert ledger.record(s, "policy", now=context.now()) == 0
        s.commit()
