"""What a run's purge found and was seen to destroy, kept in the run's row.

The record is written before the first file is touched: what the service held of the run's people, which older model
versions remembered them, and what a certificate states of the plan. From then on the run is never given up, only
resumed (`runs.give_up`): its working files may go, the record stays. After the purge every item of the record is
looked for once more; only what was there before and is gone now counts as destroyed.

File names may say who a person is. They stay in the record until the request is completed, as the user id does.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from service.banks import build, oracles
from service.context import Context
from service.erasure import plan as planning
from service.erasure.workspace import RunFolder
from service.errors import RunStoppedError
from service.models import registry, rosters
from service.requests.runs import get_run, requests_of
from service.store.engine import reading, session
from service.store.tables import Run
from unlearning.faces import find_held
from unlearning.faces.dataset import read_rows

IMAGES, COPIES = "image files", "copies of image files"
REFERENCES, ORACLES = "reference columns", "oracle columns"
VERSIONS = "older model versions"


@dataclass(frozen=True)
class Facts:
    """What a certificate states of a run's plan and policy.

    Attributes:
        policy_name, recipe_digest, manifest_digest: of the policy, the recipe and the data folder of the plan.
        forget_commitment: HMAC-SHA-256 of the rows to be forgotten, in hex.
        trained_of: images a model learned from, by request.
        bank_digest, oracle_bank_digest: keys of the banks, or none.
        methods: settings of each method of the ladder.
    """

    policy_name: str
    recipe_digest: str
    manifest_digest: str
    forget_commitment: str
    trained_of: Mapping[str, int]
    bank_digest: str | None
    oracle_bank_digest: str | None
    methods: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, context: Context, plan: planning.RunPlan) -> Facts:
        """The facts of a plan."""
        rows = json.dumps([plan.manifest_digest, plan.forget]).encode()
        return cls(
            policy_name=plan.policy_name,
            recipe_digest=plan.recipe_digest,
            manifest_digest=plan.manifest_digest,
            forget_commitment=hmac.new(context.keyring.tombstone_key, rows, hashlib.sha256).hexdigest(),
            trained_of=plan.trained_of,
            bank_digest=planning.bank_plan(context, plan).key.digest if plan.bank else None,
            oracle_bank_digest=planning.oracle_bank_plan(context, plan).key.digest if plan.oracles else None,
            methods=plan.methods,
        )


@dataclass(frozen=True)
class Holding:
    """What the service holds of one request's person.

    Attributes:
        images: image files that the table names.
        copies: files of the data folder with the same bytes that no row names.
        columns: of reference banks, number by kind.
        versions: digests of weights out of service that remember the person.
    """

    images: Sequence[str] = ()
    copies: Sequence[str] = ()
    columns: Mapping[str, int] = field(default_factory=dict)
    versions: Sequence[str] = ()

    def counts(self) -> dict[str, int]:
        """Number of things by kind."""
        copies = {COPIES: len(self.copies)} if self.copies else {}
        return {IMAGES: len(self.images), **copies, REFERENCES: 0, **self.columns, VERSIONS: len(self.versions)}


@dataclass(frozen=True)
class PurgeRecord:
    """One purge, from its beginning to its end.

    Attributes:
        held: before the purge, by request; empty once the request is completed.
        barrier: `Barrier.to_dict()` of the swap; none where nothing was deployed.
        rerun: the fields of `service.erasure.reruns.Rerun`; none where nothing was deployed.
        destroyed: seen to be destroyed, number by kind and request; none before the end.
        n_unnamed: files left in the data folder that no row of its table names.
        data_digest_after: manifest digest of the data folder without the people; empty before the end.
        finished_at: ISO 8601; none before the end.
    """

    facts: Facts
    began_at: str
    held: Mapping[str, Holding]
    barrier: Mapping[str, Any] | None = None
    rerun: Mapping[str, Any] | None = None
    destroyed: Mapping[str, Mapping[str, int]] | None = None
    n_unnamed: int = 0
    data_digest_after: str = ""
    finished_at: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PurgeRecord:
        """The record of plain JSON values."""
        held = {request_id: Holding(**holding) for request_id, holding in values["held"].items()}
        return cls(**{**values, "facts": Facts(**values["facts"]), "held": held})


def of(run: Run) -> PurgeRecord | None:
    """The run's record; none before its purge has begun."""
    return PurgeRecord.from_dict(run.purge) if run.purge else None


def begin(context: Context, run_id: str) -> PurgeRecord:
    """Record what there is to be destroyed; if the purge has begun, its record with what came since.

    Raises:
        RunStoppedError: image files of other people are missing, so that those of the run's may be out of sight, too.
    """
    with reading(context.engine) as s:
        run = get_run(s, run_id)
        subjects = {request.user_id for request in requests_of(s, run_id)}
    if (there := of(run)) is not None:
        return there if there.finished_at is not None else _with_what_came_since(context, run_id, there)
    data = context.settings.data_folder
    rows = read_rows(data)
    if n_missing := sum(row.user_id not in subjects and not (data / row.file_name).exists() for row in rows):
        raise RunStoppedError(
            f"Expected the image files that the data folder's table names, but {n_missing} of others than the people "
            "to be erased are missing, as where a volume is not mounted. Nothing was destroyed. Bring them back, or "
            "take their rows out of the table, then approve: the purge begins."
        )
    plan, folder = planning.load(context, run_id), RunFolder(context.settings, run_id)
    record = PurgeRecord(
        facts=Facts.of(context, plan),
        began_at=context.now().isoformat(),
        held=_held(context, run_id, plan.trained_of),
        barrier=folder.read("barrier"),
        rerun=folder.read("rerun"),
    )
    _write(context, run_id, record)
    return record


def _with_what_came_since(context: Context, run_id: str, record: PurgeRecord) -> PurgeRecord:
    """The record of a purge that goes on, with files and versions that came while it was interrupted."""
    now = _held(context, run_id, record.facts.trained_of)
    held = {
        request_id: replace(
            holding,
            images=_union(holding.images, now[request_id].images),
            copies=_union(holding.copies, now[request_id].copies),
            versions=_union(holding.versions, now[request_id].versions),
        )
        for request_id, holding in record.held.items()
    }
    extended = replace(record, held=held)
    if extended.to_dict() != record.to_dict():
        _write(context, run_id, extended)
    return extended


def _union(first: Sequence[str], second: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*first, *second]))


def finish(context: Context, run_id: str, record: PurgeRecord, *, n_unnamed: int, data_digest_after: str) -> None:
    """Look for everything the record names, and record what is gone.

    Raises:
        RunStoppedError: something is still there.
    """
    left: Counter[str] = Counter()
    for holding in _held(context, run_id, record.facts.trained_of).values():
        left.update(holding.counts())
    folder = context.settings.data_folder
    for holding in record.held.values():
        left[IMAGES] += sum((folder / name).exists() for name in holding.images)
        left[COPIES] += sum((folder / name).exists() for name in holding.copies)
    versions = {digest for holding in record.held.values() for digest in holding.versions}
    left[VERSIONS] = sum(not _is_destroyed(context, digest) for digest in versions)
    if still := ", ".join(f"{count} {kind}" for kind, count in left.items() if count):
        raise RunStoppedError(
            f"Expected everything to be gone after the purge, found {still}. See whether the home can be written to "
            "and nobody restores files from a backup, then approve: the purge goes on where it stopped."
        )
    destroyed = {request_id: holding.counts() for request_id, holding in record.held.items()}
    ended = {
        **record.to_dict(), "destroyed": destroyed, "n_unnamed": n_unnamed,
        "data_digest_after": data_digest_after, "finished_at": context.now().isoformat(),
    }  # fmt: skip
    _write(context, run_id, PurgeRecord.from_dict(ended))


def without_names(run: Run) -> dict[str, Any]:
    """The run's record without file names, as it stays when the requests are completed."""
    return {**(run.purge or {}), "held": {}}


def _held(context: Context, run_id: str, trained_of: Mapping[str, int]) -> dict[str, Holding]:
    """What there is of each request's person now."""
    settings = context.settings
    with reading(context.engine) as s:
        requests = requests_of(s, run_id)
        remembering = rosters.naming(s, [request.subject_hash for request in requests])
    refused = {row.digest for row in registry.refused(context) if row.destroyed_at is None}
    subject_of = {request.id: request.user_id or "" for request in requests}
    in_folder = find_held(settings.data_folder, set(subject_of.values()))
    tag_of = {request_id: context.keyring.block_hash(subject) for request_id, subject in subject_of.items()}
    columns: Counter[tuple[str, str]] = Counter()
    for store in build.stores(settings):
        columns.update(store.count_columns(tag_of.values()))
    holdings = {}
    for request in requests:
        counts: Counter[str] = Counter()
        for (tag, statistic), count in columns.items():
            if tag == tag_of[request.id]:
                counts[ORACLES if statistic == oracles.STATISTIC else REFERENCES] += count
        versions = remembering.get(request.subject_hash, set()) | (refused if trained_of.get(request.id) else set())
        files = in_folder[subject_of[request.id]]
        holdings[request.id] = Holding(files.images, files.copies, dict(counts), sorted(versions))
    return holdings


def _is_destroyed(context: Context, digest: str) -> bool:
    return registry.get(context, digest).destroyed_at is not None and not registry.is_held(context, digest)


def _write(context: Context, run_id: str, record: PurgeRecord) -> None:
    with session(context.engine) as s:
        run = get_run(s, run_id)
        run.purge, run.updated_at = record.to_dict(), context.now()
        s.add(run)
        s.commit()
