"""From the database's rows to signed, logged certificates, written in the caller's transaction."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel import Session

from audit.certificate import Acknowledgement, Certificate, Procedure, Purge, certificate_file, log_entry, seal
from audit.log import inclusion_proofs
from audit.policy import Policy
from audit.statement import NOT_REQUIRED
from service import ledger, planning
from service.context import LINE, Context
from service.production import made_with
from service.tables import Attempt, CertificateRecord, ErasureRequest, Run
from unlearning.methods import find_method, settings_for

NO_MODEL = "0" * 64  # digest where a service has data but no model


@dataclass(frozen=True)
class Purged:
    """What the purge of a run left behind in words.

    Attributes:
        n_older_versions: model versions destroyed.
        data_digest_after: manifest digest of the data folder without the people.
        barrier: `Barrier.to_dict()` of the swap; none where nothing was deployed.
    """

    n_older_versions: int
    data_digest_after: str
    finished_at: datetime
    barrier: dict[str, Any] | None


@dataclass(frozen=True)
class Issuer:
    """Issues the certificates of one run."""

    context: Context
    policy: Policy
    run: Run
    plan: planning.RunPlan

    def failure(self, s: Session, attempt: Attempt, commitments: tuple[str, ...]) -> str:
        """Certificate of a candidate that did not pass; it names no request. Gives its id."""
        after = self.plan.manifest_digest  # nothing was destroyed
        certificate = Certificate(request_id=None, subject_commitments=commitments, **self._judged(attempt, after))
        (certificate_id,) = self._issue(s, [certificate])
        return certificate_id

    def erasures(
        self,
        s: Session,
        requests: Sequence[ErasureRequest],
        attempt: Attempt | None,
        purged: Purged,
        rerun: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """A certificate for each completed request; gives their ids in order. What all share is made once.

        `rerun`: the fields of `service.reruns.Rerun`.
        """
        not_required = self._not_required(purged.data_digest_after)
        judged: dict[str, Any] = {}
        if attempt is not None:
            judged = self._judged(attempt, purged.data_digest_after)
            judged |= {"generation": self.run.generation, "barrier": _acknowledgements(purged.barrier), "rerun": rerun}

        def certificate(request: ErasureRequest) -> Certificate:
            n_trained = self.plan.trained_of.get(request.id, 0)
            destroyed = {
                "image files": self.plan.images_of.get(request.id, 0),
                "reference columns": n_trained if self.plan.bank else 0,
                **({"oracle columns": n_trained} if self.plan.oracles else {}),
                "older model versions": purged.n_older_versions if n_trained else self.plan.older_of.get(request.id, 0),
            }
            return Certificate(
                request_id=request.id, subject_commitments=(request.commitment,),
                purge=Purge(destroyed=destroyed, finished_at=purged.finished_at),
                **(judged if n_trained and judged else not_required),
            )  # fmt: skip

        return self._issue(s, list(map(certificate, requests)))

    def _judged(self, attempt: Attempt, data_digest_after: str) -> dict[str, Any]:
        """What stands in the certificate of any audited candidate."""
        figures = dict(attempt.figures)
        checks = tuple(figures.pop("checks", ()))
        settings = self.plan.methods.get(attempt.method)
        if settings is None:  # planned by a version that did not write them down
            settings = settings_for(attempt.method, planning.recipe_of(self.context)).to_dict()
        if find_method(attempt.method).needs_oracles:
            settings = {**settings, "oracle_bank": planning.oracle_bank_plan(self.context, self.plan).key.digest}
        procedure = self._procedure(
            data_digest_after, method=attempt.method, rung=attempt.step, settings=settings, seed=attempt.seed,
            **figures.pop("made_with"),
        )  # fmt: skip
        return {
            **self._common(),
            "verdict": str(attempt.verdict),
            "weights_digest": str(attempt.candidate_digest),
            "procedure": procedure,
            "checks": checks,
            "figures": figures,
            "bank_keys": (planning.bank_plan(self.context, self.plan).key.digest,),
            "cost": {"share_of_retraining": figures.get("cost_share")},
        }

    def _not_required(self, data_digest_after: str) -> dict[str, Any]:
        """No model had learned from the person: the weights are those of before, or of the rest of the batch."""
        weights = self.run.candidate_digest or self.run.base_digest or NO_MODEL
        procedure = self._procedure(
            data_digest_after, method="none", rung=0, settings={}, seed=self.run.seed, **made_with(self.context)
        )
        return {
            **self._common(), "verdict": NOT_REQUIRED, "weights_digest": weights, "procedure": procedure, "checks": (),
            "figures": {}, "bank_keys": (), "cost": {},
        }  # fmt: skip

    def _common(self) -> dict[str, Any]:
        return {
            "run_id": self.run.id,
            "model_name": LINE,
            "base_digest": self.run.base_digest or NO_MODEL,
            "policy_name": self.policy.name,
            "policy_digest": self.policy.digest,
            "issued_at": self.context.now(),
        }

    def _procedure(self, data_digest_after: str, **how: Any) -> Procedure:
        rows = json.dumps([self.plan.manifest_digest, self.plan.forget]).encode()
        return Procedure(
            **how,
            recipe_digest=planning.recipe_of(self.context).digest,
            data_digest_before=self.plan.manifest_digest,
            data_digest_after=data_digest_after,
            forget_commitment=hmac.new(self.context.keyring.tombstone_key, rows, hashlib.sha256).hexdigest(),
        )

    def _issue(self, s: Session, certificates: Sequence[Certificate]) -> list[str]:
        """Sign, log and store; all are proven against the log's head after the last of them."""
        key, now = self.context.keyring.signing_key, self.context.now()
        public_key = key.public_key()
        envelopes = [seal(certificate, sign=key.sign, public_key=public_key) for certificate in certificates]
        indices = ledger.append_all(s, list(map(log_entry, envelopes)), kind="certificate", now=now)
        hashes = ledger.leaf_hashes(s, indices.stop)
        head, proofs = ledger.checkpoint(hashes, key), inclusion_proofs(indices, hashes)
        records = []
        for certificate, envelope, index, proof in zip(certificates, envelopes, indices, proofs, strict=True):
            text = certificate_file(
                envelope, index=index, inclusion_proof=proof, checkpoint=head, public_keys=(public_key,)
            )
            record = CertificateRecord(
                id=self.context.new_id(),
                run_id=self.run.id,
                request_id=certificate.request_id,
                verdict=certificate.verdict,
                envelope=json.loads(text),
                log_index=index,
                created_at=now,
            )
            records.append(record)
        s.add_all(records)
        s.flush()
        return [record.id for record in records]


def _acknowledgements(barrier: dict[str, Any] | None) -> tuple[Acknowledgement, ...]:
    """Serving processes that acknowledged; those that were fenced or ended answer nothing and are not cited."""
    rows = barrier["processes"] if barrier else ()
    return tuple(
        Acknowledgement(row["boot_id"], row["acknowledged_generation"], datetime.fromisoformat(row["acknowledged_at"]))
        for row in rows
        if row["kind"] == "acknowledged"
    )
