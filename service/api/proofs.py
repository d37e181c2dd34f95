"""What the API gives for checking: certificates, keys, the log and proofs about it.

Tested in `tests/service/requests/test_views.py`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func
from sqlmodel import col, select

from audit.proof import log
from audit.proof.envelope import public_keys_pem
from service.api.schemas import LogEntries, LogEntry, LogProof, PublicKey, PublicKeys
from service.context import Context
from service.errors import InvalidInputError, NotFoundError
from service.keys.api_keys import Client
from service.requests.views import visible
from service.store import ledger
from service.store.engine import fit_id, reading
from service.store.tables import CertificateRecord, ErasureRequest, LogLeaf


def certificate_file(context: Context, client: Client, certificate_id: str) -> dict[str, Any]:
    """A certificate as the file that verifies offline, for a client with a request it speaks for, or who sees all.

    Raises:
        NotFoundError: none, or not for this client.
    """
    with reading(context.engine) as s:
        record = s.get(CertificateRecord, certificate_id) if fit_id(certificate_id) else None
        mine = select(ErasureRequest.id).where(
            ErasureRequest.client_id == client.id, ErasureRequest.certificate_id == certificate_id
        )
        if record is None or not (client.sees_all or s.exec(mine.limit(1)).first() is not None):
            raise NotFoundError("There is no such certificate among those you may see.")
        return record.envelope


def request_certificate(context: Context, client: Client, request_id: str) -> dict[str, Any]:
    """Certificate of a completed request.

    Raises:
        NotFoundError: no such request, or it has no certificate (yet).
    """
    with reading(context.engine) as s:
        request = visible(s, client, request_id)
    if request.certificate_id is None:
        raise NotFoundError(f"There is no certificate of this request; it is {request.state}.")
    return certificate_file(context, client, request.certificate_id)


def public_keys(context: Context) -> PublicKeys:
    """Keys that certificates and checkpoints verify with, the one that signs now first."""
    rotate_by = context.keyring.signing.expires_at(context.settings.signing_key_days)
    keys = [
        PublicKey(
            key_id=key.key_id, algorithm="Ed25519", pem=public_keys_pem([key.public]), valid_from=key.valid_from,
            valid_until=key.valid_until, rotate_by=None if key.valid_until else rotate_by,
        )
        for key in context.keyring.signing.published()
    ]  # fmt: skip
    return PublicKeys(keys=keys)


def checkpoint(context: Context) -> str:
    """Signed head of the log as it is now."""
    with reading(context.engine) as s:
        return ledger.checkpoint(ledger.leaf_hashes(s), context.keyring.signing_key)


def inclusion(context: Context, index: int, tree_size: int | None) -> LogProof:
    """Proof that the entry at `index` is in the tree of the first `tree_size` entries (none: of all).

    Raises:
        InvalidInputError: the log has no such tree, or the tree no such entry.
    """
    hashes = _tree(context, tree_size)
    if index >= len(hashes):
        raise InvalidInputError(f"Expected the index of one of the tree's {len(hashes)} entries, got {index}.")
    return _proof(context, hashes, log.inclusion_proof(index, hashes))


def consistency(context: Context, first_size: int, second_size: int | None) -> LogProof:
    """Proof that the tree of `second_size` entries (none: of all) only added to the one of `first_size`.

    Raises:
        InvalidInputError: the log has no such trees.
    """
    hashes = _tree(context, second_size)
    if first_size > len(hashes):
        raise InvalidInputError(f"Expected first_size of at most {len(hashes)} entries, got {first_size}.")
    return _proof(context, hashes, log.consistency_proof(first_size, hashes))


def log_entries(context: Context, start: int, limit: int) -> LogEntries:
    """Up to `limit` entries from index `start` on."""
    with reading(context.engine) as s:
        size = s.exec(select(func.count()).select_from(LogLeaf)).one()
        query = select(LogLeaf).where(LogLeaf.index >= start).order_by(col(LogLeaf.index)).limit(limit)
        entries = [LogEntry.model_validate(leaf.model_dump()) for leaf in s.exec(query)]
    return LogEntries(tree_size=size, entries=entries)


def _tree(context: Context, size: int | None) -> list[bytes]:
    with reading(context.engine) as s:
        hashes = ledger.leaf_hashes(s, size)
    if size is not None and len(hashes) < size:
        raise InvalidInputError(f"Expected a tree of at most {len(hashes)} entries, got {size}; the log has no more.")
    return hashes


def _proof(context: Context, hashes: list[bytes], nodes: Sequence[bytes]) -> LogProof:
    return LogProof(
        tree_size=len(hashes),
        hashes=[base64.b64encode(node).decode() for node in nodes],
        checkpoint=ledger.checkpoint(hashes, context.keyring.signing_key),
    )
