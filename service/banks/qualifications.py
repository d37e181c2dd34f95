"""Qualifications of methods: the record of each, which one is valid now, and what goes with an erased probe subject.

`service.studies.qualification` draws lots of probe subjects, runs methods on them and writes what came of it;
`find_valid` says whether a method may be used on the strength of that.

**The record** is a file like a certificate: a signed in-toto statement of type `PREDICATE_TYPE`, whose subject is the
method's code, with its place in the log. It holds no user id, no tag and no image's figure. Each probe subject is a
commitment, HMAC-SHA-256 of the user id under a random salt, with figures of all their images together.

**An erasure** removes the probe from the row: the tag, the salt, the figures. The record stays as it is, since it is
signed and logged. Without the salt nobody can open its commitment, as with the commitment of a certificate. The lot
itself can be drawn again by whoever holds `block.key` and still knows the id: that they were a probe subject is then
known to one who knew them already, and nothing of their images.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from audit.errors import AuditError
from audit.proof import envelope as dsse
from audit.proof import log
from audit.proof.certificate import certificate_file
from audit.proof.qualification import LIMITS, PREDICATE_TYPE, RECORD_KIND, log_entry, looks_of, matches
from audit.proof.statement import STATEMENT_TYPE
from audit.qualification import Bars
from service.banks.build import training_code_version
from service.banks.method_code import method_code_version
from service.context import Context
from service.store import ledger
from service.store.engine import reading, session
from service.store.tables import ErasureRequest, LogLeaf, Qualification, Tombstone, TunedSubject
from unlearning.faces.dataset import read_rows
from unlearning.recipes import Recipe

RENEW_DAYS = 14
"""So long before a qualification expires a new one is due."""
DRIFT_MAX = 0.2
"""Largest share of the subjects that may have been erased or added since.

Every erasure and every import makes other data, so equality would let no qualification live; and a method's settings
are not tuned to single subjects. With a fifth of the subjects changed, four of five subjects that the statement was
about are still there, which is about what eight probe subjects can tell apart: all eight pass by luck with probability
.17 if one subject in five fails. Where much less changed nobody would see a difference; beyond it nobody knows.
"""


@dataclass(frozen=True)
class Identity:
    """What a qualification holds for; in anything else a method is another one."""

    method: str
    settings_digest: str
    recipe_digest: str
    method_code: str
    training_code: str

    @classmethod
    def of(cls, method: str, options: Mapping[str, Any], recipe: Recipe) -> Identity:
        """Of a method with these settings (plain values), as its code is now.

        Raises:
            MethodError: there is no method of that name.
        """
        digest = hashlib.sha256(log.canonical_json(dict(options))).hexdigest()
        return cls(method, digest, recipe.digest, method_code_version(method), training_code_version())

    @classmethod
    def of_row(cls, row: Qualification) -> Identity:
        """Of a stored one."""
        return cls(row.method, row.settings_digest, row.recipe_digest, row.method_code, row.training_code)


@dataclass(frozen=True)
class Qualified:
    """A valid qualification.

    Attributes:
        log_index: of the record's entry in the log.
        envelope_sha256: digest of the signed envelope, which that entry has.
        statement: what it says about the subjects.
        cost_share: what a run cost, as a share of a training: the median over the probe subjects.
        pass_rate: share of all runs that the gate passed.
        looks: a sentence on features and retained subjects, which have no bar.
    """

    id: str
    method: str
    log_index: int
    envelope_sha256: str
    expires_at: datetime
    n_probes: int
    statement: str
    cost_share: float
    pass_rate: float
    looks: str


def find_valid(
    context: Context,
    *,
    method: str,
    options: Mapping[str, Any],
    recipe: Recipe,
    n_subjects_now: int,
    bars: Bars | None = None,
) -> Qualified | str:
    """The qualification that lets a method be used now, or a sentence that says why there is none.

    The newest result for exactly this method, settings, recipe and code counts: one that failed is not made good by an
    older one that passed. Results that say nothing about the bars, passed at lower or failed at higher ones, do not
    count.

    Args:
        options: the method's settings in force, plain values as of `Settings.to_dict`.
        n_subjects_now: subjects of the training split whose erasure does not wait.
        bars: what it must have reached; none: whichever bars it was held to.

    Raises:
        MethodError: there is no method of that name.
    """
    wanted, again = Identity.of(method, options, recipe), f"run `expunge qualify {method}`"
    with reading(context.engine) as s:
        rows = _rows_of(s, method)
        own = [row for row in rows if Identity.of_row(row) == wanted]
        done = _newest_of(own, bars)
        if done is None:
            return _why_none(rows, own, wanted, again)
        predicate = read_record(context, s, done)
        objection = _objection(context, s, done, predicate, n_subjects_now)
    if objection or predicate is None:
        return objection
    statement = str(predicate["statement"])
    if done.n_probes_erased:
        was = "probe subject was" if done.n_probes_erased == 1 else "probe subjects were"
        statement += f" {done.n_probes_erased} {was} erased since."
    return Qualified(
        done.id, method, int(done.log_index or 0), dsse.digest(_envelope(done)),
        datetime.fromisoformat(predicate["expires_at"]), done.n_probes, statement, *_price_of(predicate),
        looks_of(predicate),
    )  # fmt: skip


def _price_of(predicate: Mapping[str, Any]) -> tuple[float, float]:
    """`Qualified.cost_share` and `Qualified.pass_rate`."""
    figures = [probe["figures"] for probe in predicate["probes"] if probe["figures"] is not None]
    n_runs = sum(each["rejected"]["n_runs"] for each in figures)
    n_rejected = sum(each["rejected"]["n_rejected"] for each in figures)
    return statistics.median(each["cost_share"] for each in figures), 1.0 - n_rejected / n_runs


def is_due(
    context: Context, *, method: str, options: Mapping[str, Any], recipe: Recipe, n_subjects_now: int, bars: Bars
) -> bool:
    """Whether a method is to be qualified by whoever has time: it has no result, or one that ends soon.

    One that failed is not tried again before its result expires: exactly the same would fail again. Arguments are those
    of `find_valid`.
    """
    found = find_valid(context, method=method, options=options, recipe=recipe, n_subjects_now=n_subjects_now, bars=bars)
    soon = context.now() + timedelta(days=RENEW_DAYS)
    if isinstance(found, Qualified):
        return found.expires_at <= soon
    wanted = Identity.of(method, options, recipe)
    with reading(context.engine) as s:
        rows = s.exec(select(Qualification).where(Qualification.method == method, col(Qualification.passed).is_(False)))
        failed = [row for row in rows if Identity.of_row(row) == wanted and _decides(row, bars)]
    return all(row.expires_at is None or row.expires_at <= soon for row in failed)


def has_failed(
    context: Context, *, method: str, options: Mapping[str, Any], recipe: Recipe, bars: Bars | None = None
) -> bool:
    """Whether the result that counts, as for `find_valid`, is that the method did not reach the bars."""
    wanted = Identity.of(method, options, recipe)
    with reading(context.engine) as s:
        done = _newest_of([row for row in _rows_of(s, method) if Identity.of_row(row) == wanted], bars)
    return done is not None and not done.passed


def read_record(context: Context, s: Session, row: Qualification) -> dict[str, Any] | None:
    """What a row's record says; None unless it was signed here, is in the log, and says what the row says."""
    try:
        envelope = _envelope(row)
        if dsse.find_signer(envelope, context.keyring.public_keys) is None:
            return None
        statement = log.parse_json(dsse.read_payload(envelope))
        predicate: dict[str, Any] = statement["predicate"]
        entry, lot = s.get(LogLeaf, row.log_index), s.get(LogLeaf, row.lot_log_index)
        if entry is None or lot is None or statement["predicateType"] != PREDICATE_TYPE:
            return None
        says = Identity(
            predicate["method"], predicate["settings_digest"], predicate["recipe"]["digest"],
            predicate["method_code"], predicate["training_code"],
        )  # fmt: skip
        agrees = (
            says == Identity.of_row(row)
            and entry.entry.encode() == log_entry(envelope)
            and predicate["passed"] is row.passed
            and predicate["bars"] == row.bars
            and predicate["lot"]["log_index"] == row.lot_log_index
            and matches(log.parse_json(lot.entry), predicate)
        )
    except (AuditError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return predicate if agrees else None


def sign_record(context: Context, s: Session, row: Qualification, predicate: Mapping[str, Any]) -> None:
    """Sign, log and store the record of a row that has its result, in the caller's transaction."""
    key, now = context.keyring.signing_key, context.now()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": row.method, "digest": {"sha256": row.method_code}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {**predicate, "limits": list(LIMITS)},
    }
    envelope = dsse.seal(log.canonical_json(statement), sign=key.sign, public_key=key.public_key())
    index = ledger.append(s, log_entry(envelope), kind=RECORD_KIND, now=now)
    hashes = ledger.leaf_hashes(s, index + 1)
    (proof,) = log.inclusion_proofs(range(index, index + 1), hashes)
    text = certificate_file(
        envelope, index=index, inclusion_proof=proof, checkpoint=ledger.checkpoint(hashes, key),
        public_keys=(key.public_key(),),
    )  # fmt: skip
    row.record, row.log_index = log.parse_json(text), index
    s.add(row)


def forget_probes(s: Session, tags: Collection[str]) -> int:
    """Remove erased subjects from all lots, and from those that settings were tuned on; safe to repeat.

    The rows say how many probes were erased. The caller's transaction commits.

    Args:
        tags: `Keyring.block_hash` of each subject.

    Returns:
        How many probes and entries went.
    """
    gone, n_gone = set(tags), 0
    for row in s.exec(select(Qualification)):
        left = [probe for probe in row.probes if probe["tag"] not in gone]
        if n := len(row.probes) - len(left):
            row.probes, row.n_probes_erased = left, row.n_probes_erased + n
            s.add(row)
            n_gone += n
    for start in range(0, len(ordered := sorted(gone)), 500):
        named = col(TunedSubject.tag).in_(ordered[start : start + 500])
        n_gone += s.exec(select(func.count()).select_from(TunedSubject).where(named)).one()
        s.execute(sa.delete(TunedSubject).where(named))
    s.flush()
    return n_gone


def count_probes(s: Session, tags: Collection[str]) -> int:
    """How many probes and entries of `forget_probes` there are still of some subjects."""
    asked = set(tags)
    n = sum(probe["tag"] in asked for row in s.exec(select(Qualification)) for probe in row.probes)
    for start in range(0, len(ordered := sorted(asked)), 500):
        named = col(TunedSubject.tag).in_(ordered[start : start + 500])
        n += s.exec(select(func.count()).select_from(TunedSubject).where(named)).one()
    return n


def note_tuned(context: Context, method: str, recipe: Recipe, people: Collection[str]) -> None:
    """Remember whom a method's settings are tuned on, so that no lot draws them.

    By keyed hash, and here rather than in the file of settings: a file may be handed on and outlives an erasure, while
    `forget_probes` takes the hash away.
    """
    with session(context.engine) as s:
        for person in set(people):
            tag = context.keyring.block_hash(person)
            s.merge(TunedSubject(method=method, recipe_digest=recipe.digest, tag=tag))
        s.commit()


def count_subjects(context: Context) -> int:
    """Subjects of the training split whose erasure does not wait: `n_subjects_now` for whoever has not packed images.

    Raises:
        FacesError: the data folder's table cannot be read.
    """
    with reading(context.engine) as s:
        tombstones = set(s.exec(select(Tombstone.subject_hash)))
    subjects = {row.user_id for row in read_rows(context.settings.data_folder) if row.split == "train"}
    return sum(context.keyring.subject_hash(subject) not in tombstones for subject in subjects)


def newest_results(s: Session) -> dict[str, Qualification]:
    """By method, the row that has the newest result."""
    rows = s.exec(select(Qualification).where(col(Qualification.passed).is_not(None)))
    return {row.method: row for row in sorted(rows, key=_finished)}


def _why_none(rows: list[Qualification], own: list[Qualification], wanted: Identity, again: str) -> str:
    """Why nothing is known of exactly what is asked for."""
    if own and own[0].passed is not None:
        if own[0].passed:
            return f"{wanted.method} passed lower bars than the policy's only; {again}."
        return f"{wanted.method} failed at higher bars than the policy's only, which says nothing of these; {again}."
    if own:
        return (
            f"The qualification of {wanted.method} begun on {own[0].created_at:%Y-%m-%d} has no result yet; {again} to "
            "go on with it."
        )
    if not rows:
        return f"{wanted.method} was never qualified; {again}."
    last = Identity.of_row(rows[0])
    if last.recipe_digest != wanted.recipe_digest:
        what = "another recipe"
    elif last.settings_digest != wanted.settings_digest:
        what = "other settings"
    else:
        what = "another version of its code"
    return f"{wanted.method} was qualified with {what} only; {again}."


def _rows_of(s: Session, method: str) -> list[Qualification]:
    """Lots and results of a method, the newest first."""
    newest = col(Qualification.created_at).desc(), col(Qualification.lot_log_index).desc()
    return list(s.exec(select(Qualification).where(Qualification.method == method).order_by(*newest)))


def _newest_of(rows: Iterable[Qualification], bars: Bars | None) -> Qualification | None:
    """The newest result that says whether the bars are reached."""
    return max((row for row in rows if row.passed is not None and _decides(row, bars)), key=_finished, default=None)


def _decides(row: Qualification, bars: Bars | None) -> bool:
    """Whether a result says whether the method reaches these bars."""
    if bars is None:
        return True
    try:
        had = Bars(**row.bars)
    except (TypeError, AuditError):  # altered, which is said when the record is read
        return True
    return had.as_strict_as(bars) if row.passed else bars.as_strict_as(had)


def _objection(
    context: Context, s: Session, row: Qualification, predicate: Mapping[str, Any] | None, n_now: int
) -> str:
    """Why a result does not let the method be used; empty if it does."""
    method, day, again = row.method, f"{_finished(row):%Y-%m-%d}", f"run `expunge qualify {row.method}`"
    if predicate is None:
        return f"The record of the qualification of {method} was altered after it was signed; {again}."
    if not predicate["passed"]:
        first = next(iter(predicate["reasons"]), "")
        return f"{method} failed its qualification on {day}: {predicate['statement']} {first}".rstrip()
    expires_at = datetime.fromisoformat(predicate["expires_at"])
    if context.now() >= expires_at:
        return f"The qualification of {method} expired on {expires_at:%Y-%m-%d}; {again}."
    n_then, n_erased = int(predicate["n_subjects"]), _n_erased_since(s, _finished(row))
    n_added = max(0, n_now - n_then + n_erased)
    if n_erased + n_added > DRIFT_MAX * n_then:
        return (
            f"Since the qualification of {method} on {day}, of {n_then} subjects {n_erased} were erased and {n_added} "
            f"came, more than {100 * DRIFT_MAX:.0f} %; {again}."
        )
    return ""


def _n_erased_since(s: Session, at: datetime) -> int:
    """Subjects erased since, whichever split they were of."""
    erased = select(func.count(func.distinct(ErasureRequest.subject_hash))).where(
        ErasureRequest.outcome == "erased", col(ErasureRequest.completed_at) > at
    )
    return s.exec(erased).one()


def _envelope(row: Qualification) -> dict[str, Any]:
    envelope: dict[str, Any] = (row.record or {})["envelope"]
    return envelope


def _finished(row: Qualification) -> datetime:
    return row.finished_at or row.created_at
