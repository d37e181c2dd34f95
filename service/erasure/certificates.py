"""Makes certificates from the database's rows, signs and logs them, in the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel import Session

from audit.proof.certificate import Acknowledgement, Certificate, Procedure, Purge, certificate_file, log_entry, seal
from audit.proof.log import inclusion_proofs
from audit.proof.statement import NOT_REQUIRED
from service.context import LINE, Context
from service.erasure.purge_record import Facts, PurgeRecord
from service.models import shadowing
from service.store import ledger
from service.store.tables import Attempt, CertificateRecord, ErasureRequest, Run
from service.training.production import made_with
from unlearning.faces.unnamed import LOOKED_THROUGH
from unlearning.methods import find_method

NO_MODEL = "0" * 64  # digest where a service has data but no model


@dataclass(frozen=True)
class Issuer:
    """Issues the certificates of one run."""

    context: Context
    run: Run
    facts: Facts

    def failure(self, s: Session, attempt: Attempt, commitments: tuple[str, ...]) -> str:
        """Issue the certificate of a candidate that did not pass, which names no request; gives its id."""
        after = self.facts.manifest_digest  # nothing was destroyed
        certificate = Certificate(request_id=None, subject_commitments=commitments, **self._judged(attempt, after))
        (certificate_id,) = self._issue(s, [certificate])
        return certificate_id

    def erasures(
        self,
        s: Session,
        requests: Sequence[ErasureRequest],
        attempt: Attempt | None,
        purged: PurgeRecord,
    ) -> list[str]:
        """Issue a certificate for each completed request; gives their ids in order.

        Args:
            attempt: the one that passed; none if no model learned from the run's subjects.
            purged: record of the finished purge.
        """
        destroyed, finished_at = purged.destroyed or {}, datetime.fromisoformat(purged.finished_at or "")
        not_required = self._not_required(purged.data_digest_after)
        judged: dict[str, Any] = {}
        if attempt is not None:
            judged = self._judged(attempt, purged.data_digest_after)
            judged |= {
                "generation": self.run.generation, "barrier": _acknowledgements(purged.barrier), "rerun": purged.rerun,
            }  # fmt: skip
            if (compared := shadowing.find(s, self.run.id)) is not None:
                judged["figures"]["shadow"] = compared.summary()

        def certificate(request: ErasureRequest) -> Certificate:
            has_learned = bool(self.facts.trained_of.get(request.id))
            return Certificate(
                request_id=request.id, subject_commitments=(request.commitment,),
                purge=Purge(destroyed[request.id], finished_at, LOOKED_THROUGH, purged.n_unnamed),
                **(judged if has_learned and judged else not_required),
            )  # fmt: skip

        return self._issue(s, list(map(certificate, requests)))

    def _judged(self, attempt: Attempt, data_digest_after: str) -> dict[str, Any]:
        """The fields of a certificate about an audited candidate."""
        figures = dict(attempt.figures)
        checks = tuple(figures.pop("checks", ()))
        settings = dict(self.facts.methods[attempt.method])
        if find_method(attempt.method).needs_oracles:
            settings["oracle_bank"] = self.facts.oracle_bank_digest
        if find_method(attempt.method).needs_spare:
            settings["spare"] = self.facts.spare
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
            "bank_keys": (self.facts.bank_digest,),
            "cost": {"share_of_retraining": figures.get("cost_share"), **figures.pop("price", {})},
        }

    def _not_required(self, data_digest_after: str) -> dict[str, Any]:
        """The fields for a subject that no model learned from: the weights are the old ones, or those of the batch."""
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
            "policy_name": self.facts.policy_name,
            "policy_digest": self.run.policy_digest,
            "issued_at": self.context.now(),
        }

    def _procedure(self, data_digest_after: str, **how: Any) -> Procedure:
        return Procedure(
            **how,
            recipe_digest=self.facts.recipe_digest,
            data_digest_before=self.facts.manifest_digest,
            data_digest_after=data_digest_after,
            forget_commitment=self.facts.forget_commitment,
        )

    def _issue(self, s: Session, certificates: Sequence[Certificate]) -> list[str]:
        """Sign, log and store certificates; each proof refers to the log's head after the last of them."""
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


def _acknowledgements(barrier: Mapping[str, Any] | None) -> tuple[Acknowledgement, ...]:
    """The serving processes that acknowledged the swap, without those that were fenced or ended."""
    rows = barrier["processes"] if barrier else ()
    return tuple(
        Acknowledgement(row["boot_id"], row["acknowledged_generation"], datetime.fromisoformat(row["acknowledged_at"]))
        for row in rows
        if row["kind"] == "acknowledged"
    )
