"""The tables; `states.py` alone writes `ErasureRequest.state`. Tested in `tests/service/store/test_migrations.py`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from service.store.instants import instant

_ORDERED = text("state = 'ordered'")


class ErasureRequest(SQLModel, table=True):
    """One person's erasure and its legal clock. `user_id` and salt are emptied at the end; the commitment stays."""

    __tablename__ = "erasure_requests"

    id: str = Field(primary_key=True)
    client_id: str = Field(index=True)  # the API key's id that filed it
    case_reference: str | None = None  # the client's own number of the case; stays after the end
    state: str = Field(index=True)
    outcome: str | None = None  # erased | no_data_held
    user_id: str | None = Field(default=None, index=True)
    subject_hash: str = Field(index=True)  # HMAC(tombstone key, user_id): links requests of one person
    commitment: str  # HMAC(commitment_salt, user_id): what a certificate cites
    commitment_salt: str | None  # hex; given to the client with the receipt, gone with the user id
    regulation: str
    ground: str
    legal_hold: bool = False
    linked_request_id: str | None = None  # the open request this one follows
    run_id: str | None = Field(default=None, index=True)
    certificate_id: str | None = None
    callback_url: str | None = None
    attention_reason: str | None = None
    reject_reason: str | None = None
    extension_reason: str | None = None
    requested_at: datetime = instant()
    received_at: datetime = instant(index=True)  # by the controller: the legal clock counts from it
    filed_at: datetime = instant(index=True)
    hold_until: datetime = instant()
    due_at: datetime = instant(index=True)
    updated_at: datetime = instant()
    completed_at: datetime | None = instant(nullable=True)


class RequestEvent(SQLModel, table=True):
    """One move of a request, written in the transaction of the move."""

    __tablename__ = "request_events"

    id: int | None = Field(default=None, primary_key=True)
    request_id: str = Field(index=True)
    at: datetime = instant()
    from_state: str | None = None
    to_state: str
    note: str = ""


class CallbackDelivery(SQLModel, table=True):
    """One move that a client's URL is told of, written in the transaction of the move."""

    __tablename__ = "callback_deliveries"

    id: int | None = Field(default=None, primary_key=True)
    request_id: str = Field(index=True)
    url: str
    body: str  # JSON, as it is signed and sent; never a user id
    status: str = "pending"  # pending | delivered | disabled | given_up
    n_attempts: int = 0  # of its own, or of another one to the same URL that it waited for
    last_result: str = ""  # of its latest attempt: "HTTP 503", or why there was no answer
    created_at: datetime = instant()
    next_attempt_at: datetime | None = instant(nullable=True, index=True)  # none: nothing more will be sent
    finished_at: datetime | None = instant(nullable=True)


class Run(SQLModel, table=True):
    """One unlearning of one batch of requests on one model line."""

    __tablename__ = "runs"

    id: str = Field(primary_key=True)
    line: str = Field(index=True)
    stage: str  # unlearning | auditing | deploying | purging | completed | needs_attention
    stage_note: str = ""  # progress for people, e.g. "reference bank 23/64"
    base_digest: str  # model version the run starts from
    policy_digest: str
    seed: int
    candidate_digest: str | None = None
    generation: int | None = None
    n_resumptions: int = Field(default=0, sa_column_kwargs={"server_default": "0"})  # see `runs.workflow_id`
    purge: dict[str, Any] | None = Field(default=None, sa_type=JSON)  # see `purge_record`; none: nothing was destroyed
    created_at: datetime = instant()
    updated_at: datetime = instant()
    finished_at: datetime | None = instant(nullable=True)


class OpenLine(SQLModel, table=True):
    """The open run of a model line: its primary key makes two at once impossible."""

    __tablename__ = "open_lines"

    line: str = Field(primary_key=True)
    run_id: str = Field(unique=True)


class Attempt(SQLModel, table=True):
    """One step of the ladder tried in a run; exact retraining may take several."""

    __tablename__ = "attempts"
    __table_args__ = (UniqueConstraint("run_id", "step"),)

    id: int | None = Field(default=None, primary_key=True)
    run_id: str = Field(index=True)
    step: int
    method: str
    seed: int
    candidate_digest: str | None = None
    verdict: str | None = None
    reasons: list[str] = Field(default_factory=list, sa_type=JSON)
    figures: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    certificate_id: str | None = None
    started_at: datetime = instant()
    finished_at: datetime | None = instant(nullable=True)


class ModelVersion(SQLModel, table=True):
    """Weights named by the SHA-256 of their safetensors file."""

    __tablename__ = "model_versions"

    digest: str = Field(primary_key=True)
    line: str = Field(index=True)
    state: str  # candidate | spare | active | retired | destroyed
    generation: int | None = Field(default=None, unique=True)
    manifest: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    signature: str  # base64 Ed25519 over the digest and the manifest's digest
    certificate_id: str | None = None
    created_at: datetime = instant()
    destroyed_at: datetime | None = instant(nullable=True)


class LearnedSubject(SQLModel, table=True):
    """Somebody whose images a model version learned from; see `rosters`. Goes with the version's weights."""

    __tablename__ = "learned_subjects"

    digest: str = Field(primary_key=True)  # of the model version
    subject_hash: str = Field(primary_key=True, index=True)  # as in `ErasureRequest`
    n_images: int


class Deployment(SQLModel, table=True):
    """Pointer of a model line: what is being staged and what is committed."""

    __tablename__ = "deployments"

    line: str = Field(primary_key=True)
    committed_generation: int
    committed_digest: str
    staging_generation: int | None = None
    staging_digest: str | None = None
    oldest_allowed_generation: int = 0  # rollback below is refused: those weights remember an erased person
    updated_at: datetime = instant()


class RollbackOrder(SQLModel, table=True):
    """An admin's order to go back to an older version; the worker carries it out. At most one of a line is open."""

    __tablename__ = "rollback_orders"
    __table_args__ = (
        Index("one_open_rollback", "line", unique=True, sqlite_where=_ORDERED, postgresql_where=_ORDERED),
    )

    id: str = Field(primary_key=True)
    line: str
    state: str  # ordered | done | refused
    digest: str  # the version to go back to
    from_digest: str  # the version in service when it was ordered
    reason: str
    ordered_by: str  # the client's id
    note: str = ""  # why it was refused, or what it waits for
    generation: int | None = None  # under which the version is in service again
    log_index: int | None = None
    ordered_at: datetime = instant()
    finished_at: datetime | None = instant(nullable=True)


class ServingWorker(SQLModel, table=True):
    """One serving process; its row is the acknowledgement the barrier and the certificate rely on."""

    __tablename__ = "serving_workers"

    boot_id: str = Field(primary_key=True)
    line: str = Field(index=True)
    host: str
    pid: int
    process: str | None = None  # tells the process from others of the same number; none: the system does not say
    expected: int  # serving processes its service was started with
    staged_generation: int = -1
    acknowledged_generation: int = -1
    acknowledged_at: datetime | None = instant(nullable=True)
    last_error: str = ""
    started_at: datetime = instant()
    heartbeat_at: datetime = instant()
    lease_until: datetime = instant()


class ShadowComparison(SQLModel, table=True):
    """Live predictions that a run's candidate answered too before it was committed; see `service.models.shadow`."""

    __tablename__ = "shadow_comparisons"

    run_id: str = Field(primary_key=True)
    digest: str  # of the candidate
    share: float  # of the batches that it answered too
    counts: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)  # by place of the class; empty before the end
    began_at: datetime = instant()
    ended_at: datetime | None = instant(nullable=True)


class ShadowPart(SQLModel, table=True):
    """What one serving process counted for a comparison that is under way; goes when it ends."""

    __tablename__ = "shadow_parts"

    run_id: str = Field(primary_key=True)
    boot_id: str = Field(primary_key=True)
    generation: int = Field(primary_key=True)  # under which the candidate was staged
    counts: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)  # by place of the class


class Tombstone(SQLModel, table=True):
    """Keyed hash of a person who asked to be erased: in no later training run, even while waiting."""

    __tablename__ = "tombstones"

    subject_hash: str = Field(primary_key=True)
    created_at: datetime = instant()


class IdempotencyRecord(SQLModel, table=True):
    """Answer given to a client's `Idempotency-Key`."""

    __tablename__ = "idempotency_records"

    client_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)  # HMAC of what the client sent
    body_sha256: str  # HMAC of the canonical body, so that no user id can be recovered
    response: dict[str, Any] = Field(sa_type=JSON)  # without salts: these are read from the requests
    created_at: datetime = instant(index=True)


class ApiKey(SQLModel, table=True):
    """A client's key, stored as SHA-256 only."""

    __tablename__ = "api_keys"

    id: str = Field(primary_key=True)
    name: str
    sha256: str = Field(unique=True)
    previous_sha256: str | None = None  # of the secret before a rotation, which works until `previous_until`
    previous_until: datetime | None = instant(nullable=True)
    scopes: list[str] = Field(sa_type=JSON)
    most_open: int | None = None  # open requests it may have; none: as in the settings
    created_at: datetime = instant()
    expires_at: datetime | None = instant(nullable=True)
    revoked_at: datetime | None = instant(nullable=True)


class CertificateRecord(SQLModel, table=True):
    """A signed certificate, passed or failed."""

    __tablename__ = "certificates"

    id: str = Field(primary_key=True)
    run_id: str = Field(index=True)
    request_id: str | None = Field(default=None, index=True)  # none: the certificate of a failed attempt
    verdict: str
    envelope: dict[str, Any] = Field(sa_type=JSON)
    log_index: int
    created_at: datetime = instant()


class LogLeaf(SQLModel, table=True):
    """Leaf of the append-only Merkle log, in order of `index` from 0."""

    __tablename__ = "log_leaves"

    index: int = Field(primary_key=True)
    kind: str  # policy | certificate | audit
    entry: str  # canonical JSON whose RFC 6962 leaf hash is in the tree
    leaf_hash: str
    created_at: datetime = instant()


class KeyMark(SQLModel, table=True):
    """A hash of one of the secrets the database belongs to; see `key_marks`."""

    __tablename__ = "key_marks"

    name: str = Field(primary_key=True)
    mark: str


class StoredBank(SQLModel, table=True):
    """What the shared storage holds of the banks' folder; see `stored_banks`."""

    __tablename__ = "stored_banks"

    name: str = Field(primary_key=True)  # digest of the bank's key, or the name of a file
    sha256: str  # of the object
    signature: str  # of both, in base64
    published_at: datetime = instant()


class WorkerLease(SQLModel, table=True):
    """The one worker of a model line; a second one refuses to start while this is renewed: `service.erasure.lease`."""

    __tablename__ = "worker_leases"

    line: str = Field(primary_key=True)
    holder: str
    host: str
    pid: int
    process: str | None = None  # tells the process from others of the same number; none: the system does not say
    fencing_token: int
    n_subjects: int | None = None  # people it holds data of, for serving processes without a data folder
    data_obstacle: str | None = None  # as it last looked, see `data_folder`; "": none, null: it has not looked yet
    n_returned: int | None = None  # erased people whom the data folder names again; null: not known
    waits_for: str | None = None  # what keeps it from working, in words for operators; none: nothing
    waits_since: datetime | None = instant(nullable=True)
    heartbeat_at: datetime = instant()
    lease_until: datetime = instant()  # not later than `heartbeat_at`: the worker let go of it


class ReferenceBlock(SQLModel, table=True):
    """What references a block has, as the worker last saw its banks; the files are the truth, this is for people."""

    __tablename__ = "reference_blocks"

    line: str = Field(primary_key=True)
    block: str = Field(primary_key=True)
    state: str  # fresh | stale | outdated | building | missing
    bank: str | None = None  # digest of the key of the bank that would judge a request from the block now
    n_people: int  # of the training split, in the block now
    n_models: int  # finished models of that bank, or of the one that is being built
    n_wanted: int  # that the policy asks for
    n_next: int = 0  # finished models of the bank of the present data: n_wanted of them when it is fresh
    n_learned: int = 0  # people its models learned from
    n_gone: int = 0  # of these, how many were erased since or wait to be
    staleness: float = 0.0  # share in [0, 1]; see `service.banks.store.Staleness`
    size_bytes: int = 0
    cost_seconds: float = 0.0  # training time of its models
    begun_at: datetime | None = instant(nullable=True)
    updated_at: datetime = instant()


class Qualification(SQLModel, table=True):
    """A lot of probe subjects for one method, and its verdict, once reached; see `service.banks.qualifications`."""

    __tablename__ = "qualifications"

    id: str = Field(primary_key=True)
    method: str = Field(index=True)
    settings_digest: str
    recipe_digest: str
    method_code: str  # digest of the code that a run of the method passes through
    training_code: str
    data_digest: str  # of the data folder's manifest when the lot was drawn
    bars: dict[str, Any] = Field(sa_type=JSON)
    n_subjects: int  # in the training split then
    n_drawn_from: int  # of these, without those whom the settings were tuned on
    lot_number: int  # among the lots drawn for this method and these data, from 1
    n_references: int
    n_runs: int
    n_probes: int
    n_probes_erased: int = 0
    probes: list[dict[str, Any]] = Field(sa_type=JSON)  # of each not erased: commitment, salt, tag, figures
    passed: bool | None = None  # none: it has no result yet
    reason: str = ""  # why it did not pass
    record: dict[str, Any] | None = Field(default=None, sa_type=JSON)  # the signed file; keeps every commitment
    lot_log_index: int
    log_index: int | None = None
    created_at: datetime = instant()
    finished_at: datetime | None = instant(nullable=True)
    expires_at: datetime | None = instant(nullable=True)


class TunedSubject(SQLModel, table=True):
    """A subject on whom a method's settings were tuned here, by keyed hash: never a probe of that method."""

    __tablename__ = "tuned_subjects"

    method: str = Field(primary_key=True)
    recipe_digest: str = Field(primary_key=True)
    tag: str = Field(primary_key=True, index=True)
