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
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit.proof import envelope as dsse
from audit.proof import log, qualification
from audit.proof.checks import (
    VerificationCheck,
    growth_check,
    key_check,
    log_checks,
    lot_check,
    printable,
    rerun_check,
    retired_check,
    statement_check,
    weights_check,
)
from audit.proof.envelope import CertificateError
from audit.proof.statement import (
    LIMITS,
    NOT_REQUIRED,
    Acknowledgement,
    Certificate,
    Procedure,
    Purge,
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
        check = growth_check(head, *kept, keys=keys, leaves=log_leaves, proof=consistency)
        valid = found.valid and check.passed is not False
        return replace(found, valid=valid, verdict=found.verdict if valid else None, checks=(*found.checks, check))
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        reason = printable(f"it has no {error}" if isinstance(error, KeyError) else str(error))
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
        key_check(signer, pinned),
    ]
    statement = log.parse_json(dsse.read_payload(content["envelope"]))
    checks.append(statement_check(statement))
    checks += retired_check(statement, retired_at.get(dsse.key_id(signer)))
    checks += rerun_check(statement)
    is_record = statement["predicateType"] == qualification.PREDICATE_TYPE
    entry = (qualification.log_entry if is_record else log_entry)(content["envelope"])
    checks += log_checks(content["log"], entry, keys, log_leaves)
    if is_record:
        checks.append(lot_check(statement["predicate"], int(content["log"]["index"]), log_leaves))
    if weights_path is not None:
        checks.append(weights_check(statement, Path(weights_path)))
    valid = all(check.passed is not False for check in checks)
    predicate = statement["predicate"]
    verdict = qualification.verdict_of(predicate) if is_record else predicate["verdict"]
    return Verification(valid, verdict if valid else None, tuple(checks), statement)


def _as_keys(public_key: Ed25519PublicKey | Iterable[Ed25519PublicKey]) -> tuple[Ed25519PublicKey, ...]:
    return (public_key,) if isinstance(public_key, Ed25519PublicKey) else tuple(public_key)


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
