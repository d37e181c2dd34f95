"""What a run's purge found and what it destroyed, kept in the run's row.

The record is written before the first file is touched: what the service holds of the run's subjects, which older model
versions remember them, and what a certificate states of the plan. From then on the run is never given up, only resumed
(`runs.give_up`), and it no longer needs its working files. After the purge every item of the record is looked for once
more. Only what was there before and is gone now counts as destroyed.

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
from service.banks.file_format import BESIDE, IN
from service.banks.qualifications import count_probes
from service.context import Context
from service.erasure.references import bank_plan, oracle_bank_plan
from service.erasure.workspace import Workspace
from service.errors import RunStoppedError
from service.models import destruction, registry, rosters
from service.requests.runs import get_run, requests_of
from service.store.engine import reading, session
from service.store.tables import Run
from unlearning.faces import find_held
from unlearning.faces.dataset import read_rows

IMAGES, COPIES = "image files", "copies of image files"
REFERENCES, ORACLES, ORIGINALS = "reference columns", "oracle columns", "original columns"
FEATURES_AND_EXPOSURE = "feature and exposure columns"
_KINDS = {oracles.STATISTIC: ORACLES, IN: ORIGINALS} | dict.fromkeys(BESIDE, FEATURES_AND_EXPOSURE)
"""Kind of a bank's columns by its statistic; those of other banks are reference columns."""
VERSIONS, SPARES = "older model versions", "spare models"
PROBES = "probe subjects of qualifications"


@dataclass(frozen=True)
class Facts:
    """What a certificate states about a run's plan and policy.

    Attributes:
        policy_name, recipe_digest, manifest_digest: of the policy, the recipe and the data folder of the plan.
        forget_commitment: HMAC-SHA-256 of the rows to be forgotten, in hex.
        trained_of: images a model learned from, by request.
        bank_digest, oracle_bank_digest: keys of the banks, or none.
        methods: settings of each method of the ladder.
        spare: digest of the spare that a rung starts from; empty if there is none.
    """

    policy_name: str
    recipe_digest: str
    manifest_digest: str
    forget_commitment: str
    trained_of: Mapping[str, int]
    bank_digest: str | None
    oracle_bank_digest: str | None
    methods: Mapping[str, Mapping[str, Any]]
    spare: str = ""

    @classmethod
    def of(cls, work: Workspace) -> Facts:
        """The facts of a run's plan."""
        plan = work.plan
        rows = json.dumps([plan.manifest_digest, plan.forget]).encode()
        return cls(
            policy_name=plan.policy_name,
            recipe_digest=plan.recipe_digest,
            manifest_digest=plan.manifest_digest,
            forget_commitment=hmac.new(work.context.keyring.tombstone_key, rows, hashlib.sha256).hexdigest(),
            trained_of=plan.trained_of,
            bank_digest=bank_plan(work).key.digest if plan.bank else None,
            oracle_bank_digest=oracle_bank_plan(work).key.digest if plan.oracles else None,
            methods=plan.methods,
            spare=plan.spare,
        )


@dataclass(frozen=True)
class Holding:
    """What the service holds of one request's subject.

    Attributes:
        images: names of the image files that the table names.
        copies: names of files of the data folder that have the same bytes as one of these and that no row names.
        columns: number of columns of reference banks, by kind.
        versions: digests of model versions out of service that learned from the subject.
        spares: digests of models trained ahead for other blocks (`service.banks.spares`) that learned from the subject.
    """

    images: Sequence[str] = ()
    copies: Sequence[str] = ()
    columns: Mapping[str, int] = field(default_factory=dict)
    versions: Sequence[str] = ()
    spares: Sequence[str] = ()

    def counts(self) -> dict[str, int]:
        """Number of things by kind."""
        copies = {COPIES: len(self.copies)} if self.copies else {}
        spares = {SPARES: len(self.spares)} if self.spares else {}
        return {
            IMAGES: len(self.images), **copies, REFERENCES: 0, **self.columns, VERSIONS: len(self.versions), **spares
        }  # fmt: skip


@dataclass(frozen=True)
class PurgeRecord:
    """One purge, from its beginning to its end.

    Attributes:
        held: before the purge, by request; empty once the request is completed.
        barrier: `Barrier.to_dict()` of the swap; none where nothing was deployed.
        rerun: the fields of `service.erasure.reruns.Rerun`; none where nothing was deployed.
        destroyed: number of things that were there and are gone, by request and kind; none before the end.
        n_unnamed: files left in the data folder that no row of its table names.
        data_digest_after: manifest digest of the data folder without the subjects; empty before the end.
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


def begin(work: Workspace) -> PurgeRecord:
    """Record what is to be destroyed. If the purge has begun already, add to its record what came since.

    Raises:
        RunStoppedError: image files of other subjects are missing, so those of the run's subjects may be missing too,
            as where a volume is not mounted.
    """
    context, run_id = work.context, work.run_id
    with reading(context.engine) as s:
        run = get_run(s, run_id)
        subjects = {request.user_id for request in requests_of(s, run_id)}
    if (there := of(run)) is not None:
        return there if there.finished_at is not None else _with_what_came_since(work, there)
    data = context.settings.data_folder
    rows = read_rows(data)
    if n_missing := sum(row.user_id not in subjects and not (data / row.file_name).exists() for row in rows):
        raise RunStoppedError(
            f"Expected the image files that the data folder's table names, but {n_missing} of others than the people "
            "to be erased are missing, as where a volume is not mounted. Nothing was destroyed. Bring them back, or "
            "take their rows out of the table, then approve: the purge begins."
        )
    record = PurgeRecord(
        facts=Facts.of(work),
        began_at=context.now().isoformat(),
        held=_held(work, work.plan.trained_of),
        barrier=work.folder.read("barrier"),
        rerun=work.folder.read("rerun"),
    )
    _write(work, record)
    return record


def _with_what_came_since(work: Workspace, record: PurgeRecord) -> PurgeRecord:
    """The record of a purge that goes on, with files and versions that came while it was interrupted."""
    now = _held(work, record.facts.trained_of)
    held = {
        request_id: replace(
            holding,
            images=_union(holding.images, now[request_id].images),
            copies=_union(holding.copies, now[request_id].copies),
            versions=_union(holding.versions, now[request_id].versions),
            spares=_union(holding.spares, now[request_id].spares),
        )
        for request_id, holding in record.held.items()
    }
    extended = replace(record, held=held)
    if extended.to_dict() != record.to_dict():
        _write(work, extended)
    return extended


def _union(first: Sequence[str], second: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*first, *second]))


def finish(work: Workspace, record: PurgeRecord, *, n_unnamed: int, data_digest_after: str) -> None:
    """Look for everything the record names, and record what is gone.

    Raises:
        RunStoppedError: something is still there.
    """
    context, left = work.context, Counter[str]()
    for holding in _held(work, record.facts.trained_of).values():
        left.update(holding.counts())
    folder = context.settings.data_folder
    named = {row.file_name for row in read_rows(folder)}  # files that came since: `_held` counts the subjects' own
    for holding in record.held.values():
        left[IMAGES] += sum(name not in named and (folder / name).exists() for name in holding.images)
        left[COPIES] += sum(name not in named and (folder / name).exists() for name in holding.copies)
    for kind, name in ((VERSIONS, "versions"), (SPARES, "spares")):
        digests = {digest for holding in record.held.values() for digest in getattr(holding, name)}
        left[kind] = sum(not _is_destroyed(context, digest) for digest in digests)
    with reading(context.engine) as s:
        tags = [context.keyring.block_hash(request.user_id or "") for request in requests_of(s, work.run_id)]
        left[PROBES] = count_probes(s, tags)
    if still := ", ".join(f"{count} {kind}" for kind, count in left.items() if count):
        raise RunStoppedError(
            f"Expected everything to be gone after the purge, found {still}. See whether the home can be written to "
            "and nobody restores files from a backup, then approve: the purge goes on where it stopped."
        )
    destroyed = {request_id: holding.counts() for request_id, holding in record.held.items()}
    ended = replace(
        record, destroyed=destroyed, n_unnamed=n_unnamed, data_digest_after=data_digest_after,
        finished_at=context.now().isoformat(),
    )  # fmt: skip
    _write(work, ended)


def without_names(run: Run) -> dict[str, Any]:
    """The run's record without file names, as it stays when the requests are completed."""
    return {**(run.purge or {}), "held": {}}


def _held(work: Workspace, trained_of: Mapping[str, int]) -> dict[str, Holding]:
    """What the service holds of each request's subject now."""
    context, settings = work.context, work.context.settings
    with reading(context.engine) as s:
        requests = requests_of(s, work.run_id)
        remembering = rosters.naming(s, [request.subject_hash for request in requests])
    spares = {row.digest for row in registry.versions(context) if row.state == registry.SPARE}
    refused = {row.digest for row in destruction.refused(context) if row.destroyed_at is None}
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
                counts[_KINDS.get(statistic, REFERENCES)] += count
        known = remembering.get(request.subject_hash, set())
        versions = (known - spares) | (refused if trained_of.get(request.id) else set())
        files = in_folder[subject_of[request.id]]
        holdings[request.id] = Holding(
            files.images, files.copies, dict(counts), sorted(versions), sorted(known & spares)
        )
    return holdings


def _is_destroyed(context: Context, digest: str) -> bool:
    return registry.get(context, digest).destroyed_at is not None and not registry.is_held(context, digest)


def _write(work: Workspace, record: PurgeRecord) -> None:
    with session(work.context.engine) as s:
        run = get_run(s, work.run_id)
        run.purge, run.updated_at = record.to_dict(), work.context.now()
        s.add(run)
        s.commit()
