"""The checks of a verification, one for each thing that a certificate's file can be wrong about.

Each is a function of parsed content; `audit.proof.certificate.verify` asks them in turn.

Tested in `tests/audit/proof/test_certificate.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import file_digest
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit.proof import envelope as dsse
from audit.proof import log, qualification
from audit.proof.envelope import CertificateError
from audit.proof.statement import NOT_REQUIRED, PREDICATE_TYPE, STATEMENT_TYPE, VERDICTS, is_sha256_hex


@dataclass(frozen=True)
class VerificationCheck:
    """Result of one check; `passed` is None where there was nothing to compare with."""

    name: str
    passed: bool | None
    sentence: str


def key_check(signer: Ed25519PublicKey, pinned: bool) -> VerificationCheck:
    if pinned:
        return VerificationCheck("key", True, f"It was signed by a key you trust, {dsse.key_id(signer)}.")
    sentence = (
        f"The signer's key, {dsse.key_id(signer)}, comes from the file itself: compare it with one you got elsewhere, "
        "or give that one."
    )
    return VerificationCheck("key", None, sentence)


def retired_check(statement: Any, retired_at: datetime | None) -> list[VerificationCheck]:
    if retired_at is None:
        return []
    issued_at = datetime.fromisoformat(statement["predicate"]["issued_at"])
    before = issued_at <= retired_at
    sentence = f"Its key was retired at {retired_at.isoformat()}, {'after' if before else 'BEFORE'} it was issued."
    return [VerificationCheck("key's validity", before, sentence)]


def rerun_check(statement: Any) -> list[VerificationCheck]:
    """Whether the candidate was made a second time; no check where none was deployed."""
    rerun = statement["predicate"].get("rerun")
    if rerun is None:
        return []
    if not rerun["chosen"]:
        sentence = (
            f"The candidate was made once: a keyed hash chooses {rerun['share']:.0%} of the runs for a second time."
        )
        return [VerificationCheck("re-run", None, sentence)]
    same = rerun["weights_digest"] == statement["subject"][0]["digest"]["sha256"]
    sentence = f"The candidate was made a second time, and had {'the same' if same else 'OTHER'} weights."
    return [VerificationCheck("re-run", same, sentence)]


def statement_check(statement: Any) -> VerificationCheck:
    """Checks the statement's types, its one subject and its verdict."""
    if statement["_type"] == STATEMENT_TYPE and statement["predicateType"] == qualification.PREDICATE_TYPE:
        return VerificationCheck("statement", True, printable(qualification.sentence_of(statement["predicate"])))
    if statement["_type"] != STATEMENT_TYPE or statement["predicateType"] != PREDICATE_TYPE:
        raise CertificateError(f"its statement is not of type {PREDICATE_TYPE}.")
    predicate, (subject,) = statement["predicate"], statement["subject"]
    if predicate["verdict"] not in VERDICTS or not is_sha256_hex(subject["digest"]["sha256"]):
        raise CertificateError("its verdict or the digest of its weights is malformed.")
    purge = predicate["purge"]
    counts = purge["destroyed"] if purge else {}
    destroyed = printable(", ".join(f"{count} {kind}" for kind, count in counts.items() if count)) or "nothing"
    if n_left := (purge or {}).get("n_files_not_looked_into"):  # certificates of the first release do not say it
        destroyed += f" ({int(n_left)} other files of the data folder were not looked into)"
    if predicate["verdict"] == NOT_REQUIRED:
        sentence = f"It certifies that no model had learned from the subject. Destroyed: {destroyed}."
    elif predicate["verdict"] != "PASSED":
        sentence = f"It certifies an audit with the verdict {predicate['verdict']}: these weights were not deployed."
    elif purge:
        processes = "1 serving process" if (n := len(predicate["barrier"])) == 1 else f"{n} serving processes"
        sentence = f"It certifies a passed audit and {processes} on the new model. Destroyed: {destroyed}."
    else:
        sentence = "It certifies a passed audit, but no deployment and no destruction of data."
    return VerificationCheck("statement", True, sentence)


def lot_check(predicate: Mapping[str, Any], index: int, log_leaves: Sequence[bytes | str] | None) -> VerificationCheck:
    """Whether a qualification's probe subjects were drawn before its record."""
    drew = qualification.drew_lot(predicate, index, log_leaves)
    place = int(predicate["lot"]["log_index"])
    if drew is None:
        sentence = f"Its lot is said to be entry {place} of the log; give the log's entries to see it."
    else:
        sentence = (
            f"Entry {place} of the log {'is' if drew else 'is NOT'} its lot, drawn before it with the same probes."
        )
    return VerificationCheck("lot", drew, sentence)


def printable(text: str) -> str:
    """The text without control characters, which could change the reader's terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def log_checks(
    proof: Mapping[str, Any],
    entry: bytes,
    keys: Sequence[Ed25519PublicKey],
    log_leaves: Sequence[bytes | str] | None,
) -> list[VerificationCheck]:
    signed = log.verify_checkpoint(proof["checkpoint"], keys)
    head = log.read_checkpoint(proof["checkpoint"])
    index, path = int(proof["index"]), [log.from_base64(node) for node in proof["inclusion_proof"]]
    included = log.verify_inclusion(index, head.size, log.leaf_hash(entry), path, head.root)
    checks = [
        VerificationCheck(
            "checkpoint",
            signed is not None,
            f"The log's checkpoint ({head.origin}, {head.size} entries) is "
            + ("signed by the same holder." if signed else "not signed by any of the keys."),
        ),
        VerificationCheck(
            "log",
            included,
            f"The certificate is {'' if included else 'not '}entry {index} of the log under that checkpoint.",
        ),
    ]
    if log_leaves is not None:
        checks.append(_whole_log_check(head, index, entry, log_leaves))
    return checks


def growth_check(
    head: log.Checkpoint,
    note: str,
    kept: log.Checkpoint,
    *,
    keys: tuple[Ed25519PublicKey, ...] | None,
    leaves: Sequence[bytes | str] | None,
    proof: Sequence[bytes] | None,
) -> VerificationCheck:
    """Whether the later of the certificate's checkpoint and the kept one only added entries to the earlier one."""
    if kept.origin != head.origin:
        sentence = f"The checkpoint you kept is of another log, {kept.origin}, not of {head.origin}."
        return VerificationCheck("growth", False, sentence)
    if keys is not None and log.verify_checkpoint(note, keys) is None:
        return VerificationCheck("growth", False, "The checkpoint you kept is not signed by any of the keys you trust.")
    first, second = sorted((kept, head), key=lambda each: each.size)
    if leaves is not None and len(leaves) >= second.size:
        whole = [leaf.encode() if isinstance(leaf, str) else leaf for leaf in leaves[: second.size]]
        proof = log.consistency_proof(first.size, [log.leaf_hash(leaf) for leaf in whole])
    elif first.size in (0, second.size):
        proof = ()
    if proof is None:
        sentence = (
            "Expected a proof that the log grew from one checkpoint to the other, which "
            f"GET /v1/log/consistency?first_size={first.size}&second_size={second.size} returns, or the log's first "
            f"{second.size} entries."
        )
        return VerificationCheck("growth", None, sentence)
    grew = log.verify_consistency(first.size, second.size, proof, first.root, second.root)
    outcome = "only added to" if grew else "do NOT continue; it was rewritten, or the proof is of other sizes,"
    sentence = f"The log's {second.size} entries {outcome} the first {first.size}; your checkpoint has {kept.size}."
    return VerificationCheck("growth", grew, sentence)


def weights_check(statement: Mapping[str, Any], path: Path) -> VerificationCheck:
    expected = statement["subject"][0]["digest"]["sha256"]
    try:
        with path.open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return VerificationCheck("weights", False, f"Expected weights at {path}, cannot read them: {error.strerror}.")
    if found == expected:
        return VerificationCheck("weights", True, f"The weights at {path} are the ones certified, sha256:{found}.")
    sentence = f"The weights at {path} (sha256:{found}) are not the ones certified (sha256:{expected})."
    return VerificationCheck("weights", False, sentence)


def _whole_log_check(
    head: log.Checkpoint, index: int, entry: bytes, log_leaves: Sequence[bytes | str]
) -> VerificationCheck:
    leaves = [leaf.encode() if isinstance(leaf, str) else leaf for leaf in log_leaves]
    if len(leaves) < head.size:
        sentence = f"Expected at least {head.size} entries of the log, got {len(leaves)}."
        return VerificationCheck("whole log", False, sentence)
    same = log.root([log.leaf_hash(leaf) for leaf in leaves[: head.size]]) == head.root and leaves[index] == entry
    outcome = "have exactly that root" if same else "have another root, so the log or the checkpoint was rewritten"
    return VerificationCheck("whole log", same, f"The {head.size} entries of the log you gave {outcome}.")
