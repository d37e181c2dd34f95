"""Certificates of what was done, measured and destroyed: signed, logged, and verified offline by anyone.

A certificate file is one JSON object: a DSSE envelope around an in-toto statement, its place in the log, and a key.

    {"envelope": {payload, payloadType, signatures}, "log": {index, inclusion_proof, checkpoint}, "public_key_pem": "…"}

The file alone is enough to verify it: with `verify`, or with openssl, sed and base64 and the commands of
`openssl_recipe`. Failed and undetermined audits get certificates too; only those of passed audits, and of erasures that
needed none, state that data were destroyed.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import file_digest
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit.proof import envelope as dsse
from audit.proof import log, qualification
from audit.proof.envelope import CertificateError
from audit.proof.statement import (
    LIMITS,
    NOT_REQUIRED,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    VERDICTS,
    Acknowledgement,
    Certificate,
    Procedure,
    Purge,
    is_sha256_hex,
)

__all__ = [
    "LIMITS",
    "Acknowledgement",
    "Certificate",
    "CertificateError",
    "Procedure",
    "Purge",
    "Verification",
    "VerificationCheck",
    "certificate_file",
    "log_entry",
    "openssl_recipe",
    "read_file",
    "seal",
    "verify",
]

LARGEST_FILE_BYTES = 20_000_000


def seal(certificate: Certificate, *, sign: Callable[[bytes], bytes], public_key: Ed25519PublicKey) -> dict[str, Any]:
    """DSSE envelope of the certificate; `sign` returns the Ed25519 signature (64 bytes) of a message."""
    return dsse.seal(log.canonical_json(certificate.statement), sign=sign, public_key=public_key)


def log_entry(envelope: Mapping[str, Any]) -> bytes:
    """Log entry of a sealed certificate: the SHA-256 of its envelope and nothing of its contents."""
    return log.entry("certificate", envelope_sha256=dsse.digest(envelope))


def certificate_file(
    envelope: Mapping[str, Any],
    *,
    index: int,
    inclusion_proof: Sequence[bytes],
    checkpoint: str,
    public_keys: Sequence[Ed25519PublicKey],
) -> str:
    """Text of the certificate file.

    Args:
        envelope: from `seal`.
        index: of its entry in the log.
        inclusion_proof: of that entry in the tree of the checkpoint's size.
        checkpoint: signed note.
        public_keys: the key that signed the envelope, then the checkpoint's key if it is a different one.
    """
    proof = [base64.b64encode(node).decode() for node in inclusion_proof]
    content = {
        "envelope": dict(envelope),
        "log": {"index": index, "inclusion_proof": proof, "checkpoint": checkpoint},
        "public_key_pem": dsse.public_keys_pem(public_keys),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def openssl_recipe(path: str | Path) -> str:
    """Shell commands that verify the file's signature with OpenSSL 3, sed and base64, in the current folder.

    They print `Signature Verified Successfully` and the key's id, which must be compared with one from another source.
    """
    return f"""\
# OpenSSL 3 or later; LibreSSL, which macOS calls openssl too, has no -rawin
set -e
file={shlex.quote(str(path))}
field() {{ sed -n "s/.*\\"$1\\": *\\"\\([^\\"]*\\)\\".*/\\1/p" "$file" | head -n 1; }}
field payload | base64 -d > statement.json
field sig | base64 -d > signature.bin
printf '%b' "$(field public_key_pem)" > public.pem
printf 'DSSEv1 {len(dsse.PAYLOAD_TYPE)} {dsse.PAYLOAD_TYPE} %d ' "$(wc -c < statement.json)" > signed.bin
cat statement.json >> signed.bin
openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in signed.bin -sigfile signature.bin
openssl pkey -pubin -in public.pem -outform DER | openssl dgst -sha256
"""


@dataclass(frozen=True)
class VerificationCheck:
    """Result of one check; `passed` is None where there was nothing to compare with."""

    name: str
    passed: bool | None
    sentence: str


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    `valid` is whether the file is genuine and unaltered, `verdict` what it certifies (None if it is not valid). The
    certificate of a failed audit can be valid; `erased` is whether the audit passed, the model was deployed and the
    data were destroyed.
    """

    valid: bool
    verdict: str | None
    checks: tuple[VerificationCheck, ...]
    statement: Mapping[str, Any] | None = None

    @property
    def erased(self) -> bool:
        """Valid, passed, deployed everywhere and purged."""
        if not self.valid or self.statement is None:
            return False
        predicate = self.statement["predicate"]
        return self.verdict in ("PASSED", NOT_REQUIRED) and bool(predicate["purge"])


def verify(
    certificate: str | Path | bytes | Mapping[str, Any],
    *,
    public_key: Ed25519PublicKey | Iterable[Ed25519PublicKey] | None = None,
    weights_path: str | Path | None = None,
    log_leaves: Sequence[bytes | str] | None = None,
    retired_at: Mapping[str, datetime] | None = None,
    since: str | None = None,
    consistency: Sequence[bytes] | None = None,
) -> Verification:
    """Verify a certificate offline. A bad file gives a failed check with a sentence, not an exception.

    It takes the record of a qualification too, which is a file of the same form.

    Args:
        certificate: path of the file, its bytes, or its parsed content.
        public_key: trusted key, or several (the old and the new one after a rotation). Without one the file's own is
            used, which shows that the file is unaltered but not who signed it; a check says so.
        weights_path: weights whose SHA-256 must be the certificate's subject.
        log_leaves: entries of the log from the first on, at least up to the checkpoint; the tree is rebuilt from them.
        retired_at: by key id, the time at which a trusted key stopped signing; later signatures are refused.
        since: an earlier or later checkpoint that the verifier kept; the log must be a continuation of the earlier one.
        consistency: proof of this between the two sizes; not needed where `log_leaves` reach the later one. Without
            either, the check has nothing to compare with.

    Raises:
        LogError: `since` is not a checkpoint.
    """
    kept = None if since is None else (since, log.read_checkpoint(since))
    try:
        content = certificate if isinstance(certificate, Mapping) else _content(certificate)
        found = _verify_content(content, public_key, weights_path, log_leaves, retired_at or {})
        if kept is None or found.statement is None:
            return found
        keys = None if public_key is None else _as_keys(public_key)
        head = log.read_checkpoint(content["log"]["checkpoint"])
        check = _growth_check(head, *kept, keys=keys, leaves=log_leaves, proof=consistency)
        valid = found.valid and check.passed is not False
        return replace(found, valid=valid, verdict=found.verdict if valid else None, checks=(*found.checks, check))
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        reason = _printable(f"it has no {error}" if isinstance(error, KeyError) else str(error))
        sentence = f"Expected a certificate file with envelope, log and public_key_pem, got something else: {reason}"
        return Verification(False, None, (VerificationCheck("file", False, sentence),))


def _verify_content(
    content: Mapping[str, Any],
    public_key: Ed25519PublicKey | Iterable[Ed25519PublicKey] | None,
    weights_path: str | Path | None,
    log_leaves: Sequence[bytes | str] | None,
    retired_at: Mapping[str, datetime],
) -> Verification:
    pinned = public_key is not None
    keys = dsse.read_public_keys(content["public_key_pem"]) if public_key is None else _as_keys(public_key)
    signer = dsse.find_signer(content["envelope"], keys)
    if signer is None:
        whose = "a key you trust" if pinned else "the key in the file"
        sentence = f"The signature is not by {whose}, or the certificate was altered after it was signed."
        return Verification(False, None, (VerificationCheck("signature", False, sentence),))
    checks = [
        VerificationCheck("signature", True, "The certificate is unaltered since it was signed with Ed25519."),
        _key_check(signer, pinned),
    ]
    statement = log.parse_json(dsse.read_payload(content["envelope"]))
    checks.append(_statement_check(statement))
    checks += _retired_check(statement, retired_at.get(dsse.key_id(signer)))
    checks += _rerun_check(statement)
    is_record = statement["predicateType"] == qualification.PREDICATE_TYPE
    entry = (qualification.log_entry if is_record else log_entry)(content["envelope"])
    checks += _log_checks(content["log"], entry, keys, log_leaves)
    if is_record:
        checks.append(_lot_check(statement["predicate"], int(content["log"]["index"]), log_leaves))
    if weights_path is not None:
        checks.append(_weights_check(statement, Path(weights_path)))
    valid = all(check.passed is not False for check in checks)
    predicate = statement["predicate"]
    verdict = qualification.verdict_of(predicate) if is_record else predicate["verdict"]
    return Verification(valid, verdict if valid else None, tuple(checks), statement)


def _as_keys(public_key: Ed25519PublicKey | Iterable[Ed25519PublicKey]) -> tuple[Ed25519PublicKey, ...]:
    return (public_key,) if isinstance(public_key, Ed25519PublicKey) else tuple(public_key)


def _key_check(signer: Ed25519PublicKey, pinned: bool) -> VerificationCheck:
    if pinned:
        return VerificationCheck("key", True, f"It was signed by a key you trust, {dsse.key_id(signer)}.")
    sentence = (
        f"The signer's key, {dsse.key_id(signer)}, comes from the file itself: compare it with one you got elsewhere, "
        "or give that one."
    )
    return VerificationCheck("key", None, sentence)


def _retired_check(statement: Any, retired_at: datetime | None) -> list[VerificationCheck]:
    if retired_at is None:
        return []
    issued_at = datetime.fromisoformat(statement["predicate"]["issued_at"])
    before = issued_at <= retired_at
    sentence = f"Its key was retired at {retired_at.isoformat()}, {'after' if before else 'BEFORE'} it was issued."
    return [VerificationCheck("key's validity", before, sentence)]


def _rerun_check(statement: Any) -> list[VerificationCheck]:
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


def _statement_check(statement: Any) -> VerificationCheck:
    """Checks the statement's types, its one subject and its verdict."""
    if statement["_type"] == STATEMENT_TYPE and statement["predicateType"] == qualification.PREDICATE_TYPE:
        return VerificationCheck("statement", True, _printable(qualification.sentence_of(statement["predicate"])))
    if statement["_type"] != STATEMENT_TYPE or statement["predicateType"] != PREDICATE_TYPE:
        raise CertificateError(f"its statement is not of type {PREDICATE_TYPE}.")
    predicate, (subject,) = statement["predicate"], statement["subject"]
    if predicate["verdict"] not in VERDICTS or not is_sha256_hex(subject["digest"]["sha256"]):
        raise CertificateError("its verdict or the digest of its weights is malformed.")
    purge = predicate["purge"]
    counts = purge["destroyed"] if purge else {}
    destroyed = _printable(", ".join(f"{count} {kind}" for kind, count in counts.items() if count)) or "nothing"
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


def _lot_check(predicate: Mapping[str, Any], index: int, log_leaves: Sequence[bytes | str] | None) -> VerificationCheck:
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


def _printable(text: str) -> str:
    """The text without control characters, which could change the reader's terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _log_checks(
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


def _growth_check(
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


def _weights_check(statement: Mapping[str, Any], path: Path) -> VerificationCheck:
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


def _content(certificate: str | Path | bytes) -> Any:
    data = certificate if isinstance(certificate, bytes) else read_file(Path(certificate))
    if len(data) > LARGEST_FILE_BYTES:
        raise CertificateError(f"it is larger than {LARGEST_FILE_BYTES} bytes.")
    return log.parse_json(data)


def read_file(path: Path) -> bytes:
    """Bytes of a certificate file, at most one more than `verify` accepts.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(LARGEST_FILE_BYTES + 1)
