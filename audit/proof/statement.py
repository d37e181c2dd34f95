"""Contents of a certificate as an in-toto Statement v1 (github.com/in-toto/attestation).

The statement's subject is the SHA-256 of the audited weights. Its predicate, of our own type, holds the procedure that
made them, the measurements and their bars, and, for a deployed model, which serving processes loaded it and what was
destroyed afterwards.

Tested in `tests/audit/proof/test_certificate.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from audit.proof.envelope import CertificateError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://expunge.example/erasure-certificate/v1"
NOT_REQUIRED = "NOT_REQUIRED"
VERDICTS = ("PASSED", "FAILED", "UNDETERMINED", NOT_REQUIRED)

LIMITS = (
    "Weights alone cannot show that data were never used. This document states which procedure ran, what was measured, "
    "and what was destroyed.",
    "The measurements compare the model's outputs on the images concerned with those of a limited number of models "
    "trained without them. They do not exclude differences that are too small for this number of models, or that show "
    "only by other means.",
    "A passed audit means that every bar of the policy was met. Tests that are reported without a bar, or against a "
    "lower one, may still tell the model or the method from models trained without the images.",
    "Copies of images or weights outside the operator's own systems are not covered.",
)

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Procedure:
    """How the candidate was made, enough to make it again. Digests are SHA-256 in hex."""

    method: str
    rung: int
    settings: Mapping[str, Any]
    seed: int
    recipe_digest: str
    data_digest_before: str
    data_digest_after: str
    forget_commitment: str  # keyed commitment to the rows of the forget set
    versions: Mapping[str, str]  # of the code and its packages
    device: str  # kind and name, e.g. "cpu: Intel Xeon Processor"


@dataclass(frozen=True)
class Acknowledgement:
    """A serving process that had answered its last request from an older generation by `acknowledged_at`."""

    boot_id: str
    generation: int
    acknowledged_at: datetime


@dataclass(frozen=True)
class Purge:
    """What was verifiably destroyed, and which places were not searched.

    Attributes:
        destroyed: counted by kind, `{"image files": 10, …}`.
        looked_through: a sentence on the places that were searched for copies and those that were not.
        n_files_not_looked_into: number of files in the data folder that no row of its table names and that equal
            none of the images.
    """

    destroyed: Mapping[str, int]
    finished_at: datetime
    looked_through: str
    n_files_not_looked_into: int


@dataclass(frozen=True)
class Certificate:
    """Contents of a certificate.

    Args:
        verdict: PASSED, FAILED or UNDETERMINED; NOT_REQUIRED where no model had learned from the subject, so that there
            was nothing to unlearn or to audit and the weights did not change.
        run_id: run that made the candidate.
        request_id: the erasure request; None for an attempt that was not deployed.
        subject_commitments: keyed commitments to the subjects concerned, never their ids.
        model_name: name of the model line.
        weights_digest: SHA-256 (hex) of the audited safetensors file.
        base_digest: SHA-256 (hex) of the weights it was made from.
        procedure: how it was made.
        checks: the policy's checks, each with `name`, `value`, `bar`, `passed`, `sentence`.
        figures: all other measured figures.
        policy_name, policy_digest: the bars, fixed before the run.
        bank_keys: digests of the reference banks used.
        cost: seconds and shares.
        issued_at: aware datetime.
        generation: of the model line at deployment.
        barrier: acknowledgements of all serving processes; empty if none was running.
        purge: what was destroyed; required with a barrier.
        rerun: `chosen`, `share`, `key_sha256` and `weights_digest` of a second candidate made from the same inputs;
            None where no candidate was deployed.

    Raises:
        CertificateError: a field out of range, a naive datetime, or a barrier or purge that contradicts the verdict.
    """

    verdict: str
    run_id: str
    request_id: str | None
    subject_commitments: tuple[str, ...]
    model_name: str
    weights_digest: str
    base_digest: str
    procedure: Procedure
    checks: tuple[Mapping[str, Any], ...]
    figures: Mapping[str, Any]
    policy_name: str
    policy_digest: str
    bank_keys: tuple[str, ...]
    cost: Mapping[str, Any]
    issued_at: datetime
    generation: int | None = None
    barrier: tuple[Acknowledgement, ...] = ()
    purge: Purge | None = None
    rerun: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise CertificateError(f"Expected verdict to be one of {', '.join(VERDICTS)}, got {self.verdict!r}.")
        for name in ("weights_digest", "base_digest", "policy_digest"):
            if not is_sha256_hex(getattr(self, name)):
                raise CertificateError(f"Expected {name} to be a SHA-256 in hex, got {getattr(self, name)!r}.")
        if self.barrier and self.purge is None:
            raise CertificateError("Expected a purge with the barrier: every deployment ends with one.")
        if self.barrier and self.verdict != "PASSED":
            raise CertificateError(f"Expected no barrier with verdict {self.verdict}: it never deploys.")
        if self.purge is not None and self.verdict not in ("PASSED", NOT_REQUIRED):
            raise CertificateError(f"Expected no purge with verdict {self.verdict}: nothing is destroyed for it.")
        if any(row.generation != self.generation for row in self.barrier):
            raise CertificateError(f"Expected every acknowledgement to be of generation {self.generation}.")
        if self.rerun and self.rerun["chosen"] and self.rerun["weights_digest"] != self.weights_digest:
            raise CertificateError("Expected the second candidate's weights to be the first one's: no other deploys.")
        purged = [self.purge.finished_at] if self.purge else []
        for instant in (self.issued_at, *(row.acknowledged_at for row in self.barrier), *purged):
            if instant.tzinfo is None:
                raise CertificateError(f"Expected aware datetimes, got the naive {instant!r}.")

    @property
    def statement(self) -> dict[str, Any]:
        """In-toto statement, ready for JSON."""
        predicate = {item.name: getattr(self, item.name) for item in fields(self)}
        name, digest = predicate.pop("model_name"), predicate.pop("weights_digest")
        predicate["policy"] = {"name": predicate.pop("policy_name"), "digest": predicate.pop("policy_digest")}
        predicate["limits"] = LIMITS
        return {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": json_ready(predicate),
        }


def json_ready(value: Any) -> Any:
    """Plain JSON values: arrays as lists, datetimes in ISO 8601 (UTC), NaN as null, infinities as "inf" and "-inf"."""
    if is_dataclass(value):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    elif hasattr(value, "tolist"):  # NumPy scalars and arrays
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def is_sha256_hex(text: object) -> bool:
    """Whether the text is a SHA-256 in lower-case hex."""
    return isinstance(text, str) and _SHA256_HEX.fullmatch(text) is not None
