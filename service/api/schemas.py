"""Bodies of what the API publishes: keys, the log, models, roll-backs, certificates.

Tested in `tests/service/api/test_routes.py`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from service.requests.schemas import EXAMPLE_ID, EXAMPLE_MOMENT, Answer


class PublicKey(Answer):
    """A key that signs certificates and checkpoints."""

    key_id: str = Field(description="SHA-256 of the SubjectPublicKeyInfo in DER, as in the envelopes' signatures.")
    algorithm: Literal["Ed25519"]
    pem: str
    valid_from: datetime = Field(description="When it began to sign.")
    valid_until: datetime | None = Field(description="When the next key took over; null for the one that signs now.")
    rotate_by: datetime | None = Field(description="When the key that signs now is to be replaced; null for others.")


class PublicKeys(Answer):
    """Keys to verify with, the one that signs now first."""

    keys: list[PublicKey]


class LogProof(Answer):
    """Hashes (base64) that tie an entry, or an earlier tree, to a signed checkpoint of `tree_size` entries."""

    tree_size: int
    hashes: list[str]
    checkpoint: str = Field(description="Signed note of the tree of `tree_size` entries.")


class LogEntry(Answer):
    """One entry: `leaf_hash` (hex) is SHA-256 of a zero byte and the UTF-8 text `entry`."""

    index: int
    kind: str
    entry: str
    leaf_hash: str
    created_at: datetime


class LogEntries(Answer):
    """Entries in order; `tree_size` is their number in the whole log."""

    tree_size: int
    entries: list[LogEntry]


class Model(Answer):
    """Weights, named by the SHA-256 of their file."""

    digest: str
    line: str
    state: Literal["candidate", "spare", "active", "retired", "destroyed"]
    generation: int | None
    certificate_id: str | None
    manifest: dict[str, Any]
    created_at: datetime
    destroyed_at: datetime | None
    rollback_refusal: str | None = Field(description="Why it may not be gone back to; null if it may.")


class ServingProcess(Answer):
    """A serving process and the generation it answers with; without a fresh lease it refuses to answer."""

    boot_id: str
    line: str
    staged_generation: int
    acknowledged_generation: int
    acknowledged_at: datetime | None
    lease_is_fresh: bool


class ModelLine(Answer):
    """What a line serves; rollback below `oldest_allowed_generation` is refused."""

    line: str
    committed_generation: int
    committed_digest: str
    staging_generation: int | None
    oldest_allowed_generation: int
    serving: list[ServingProcess]


class Models(Answer):
    """Versions, newest first, and what is in service."""

    lines: list[ModelLine]
    models: list[Model]


class Rollback(Answer):
    """An order to go back to an older model version. `ordered` ends as `done` or `refused`; `note` says why."""

    id: str = Field(examples=[EXAMPLE_ID])
    state: Literal["ordered", "done", "refused"]
    digest: str = Field(description="The version to go back to.")
    from_digest: str = Field(description="The version in service when it was ordered.")
    reason: str
    note: str
    generation: int | None = Field(description="The new generation under which the version is in service again.")
    log_index: int | None = Field(description="Index of the log's entry of how it ended.")
    ordered_by: str
    ordered_at: datetime = Field(examples=[EXAMPLE_MOMENT])
    finished_at: datetime | None


class Rollbacks(Answer):
    """Orders, newest first."""

    rollbacks: list[Rollback]


class CertificateFile(Answer):
    """A certificate that verifies offline: save the body as it is and run `expunge verify`."""

    envelope: dict[str, Any] = Field(description="DSSE envelope of an in-toto Statement v1.")
    log: dict[str, Any] = Field(description="Index, inclusion proof and signed checkpoint.")
    public_key_pem: str
