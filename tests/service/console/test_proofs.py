"""Reports and certificates at the console: fetched, and verified for real."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col

from audit.proof.certificate import verify
from service.console.proofs import standalone
from service.store.engine import session
from service.store.tables import CertificateRecord, LogLeaf
from tests.service.console.conftest import Erased


def test_verifying_looks_at_signature_log_and_weights_and_says_so(erased: Erased) -> None:
    page = erased.verification(erased.passed)
    assert "Genuine, and the erasure is certified" in page
    for check in ("Signature", "Key", "Statement", "Whole log", "Weights"):
        assert f">{check}</th>" in page, check
    assert "nothing to compare" not in page.partition(">Weights</th>")[2].partition("</tr>")[0]
    assert ">fails<" not in page.replace(" ", "")
    failed = erased.verification(erased.failed)
    assert "certifies that an audit did not pass" in failed


def change_envelope(erased: Erased) -> None:
    envelope: dict[str, Any] = erased.passed.envelope
    payload = str(envelope["envelope"]["payload"])
    changed = {**envelope, "envelope": {**envelope["envelope"], "payload": "A" + payload[1:]}}
    with session(erased.context.engine) as s:
        s.execute(
            sa.update(CertificateRecord).where(col(CertificateRecord.id) == erased.passed.id).values(envelope=changed)
        )
        s.commit()


def rewrite_log(erased: Erased) -> None:
    with session(erased.context.engine) as s:
        s.execute(sa.update(LogLeaf).where(col(LogLeaf.index) == 0).values(entry='{"kind":"policy"}'))
        s.commit()


def swap_weights(erased: Erased) -> None:
    for path in erased.context.settings.models_folder.glob("*.safetensors"):
        path.write_bytes(b"other weights")


@pytest.mark.parametrize("change", [change_envelope, rewrite_log, swap_weights])
def test_what_was_changed_afterwards_is_found(erased: Erased, change: Any) -> None:
    change(erased)
    page = erased.verification(erased.passed)
    assert "Not genuine" in page
    assert "fails</span>" in page


def test_the_file_to_download_verifies_offline(erased: Erased) -> None:
    answer = erased.client.get(f"/certificates/{erased.passed.id}")
    assert f'filename="certificate-{erased.passed.id[:8]}.json"' in answer.headers["content-disposition"]
    assert verify(answer.json(), public_key=erased.context.keyring.public_key).erased


def test_a_report_may_use_its_own_style_and_nothing_else(erased: Erased) -> None:
    answer = erased.client.get(f"/runs/{erased.run_id}/reports/0")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert policy.count("sha256-") == 1
    assert "unsafe" not in policy
    assert erased.client.get(f"/runs/{erased.run_id}/reports/9").status_code == 404
    assert "style-src 'none'" in standalone("<p>nothing</p>").headers["content-security-policy"]


def test_the_run_page_has_both_audits(erased: Erased) -> None:
    page = erased.client.get(f"/runs/{erased.run_id}").text
    assert "1. Fine-tuning" in page
    assert "2. Exact retraining" in page
    assert f"/certificates/{erased.failed.id}/verification" in page
    assert "Deployed as generation" in page
