"""Reports and certificates at the console: fetched, and verified for real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import col
from starlette.testclient import TestClient

from audit.proof.certificate import verify
from service.console.listener import create_console
from service.console.proofs import standalone
from service.context import Context
from service.erasure import completion
from service.keys import api_keys
from service.requests.runs import advance
from service.store.engine import session
from service.store.tables import CertificateRecord, LogLeaf
from tests.service import tiny


@dataclass
class Erased:
    """A tiny service that erased somebody after a failed attempt, and a script that may see everything."""

    context: Context
    client: TestClient
    failed: CertificateRecord
    passed: CertificateRecord
    run_id: str

    def verification(self, record: CertificateRecord) -> str:
        answer = self.client.get(f"/certificates/{record.id}/verification")
        assert answer.status_code == 200
        return answer.text


@pytest.fixture
def erased(tiny_context: Context) -> Erased:
    run_id = tiny.plan_run(tiny_context, tiny.people(tiny_context)[0])
    assert not tiny.try_step(tiny_context, run_id, tiny.FINETUNE)
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    advance(tiny_context, run_id, "deploying")
    tiny.candidates.deploy(tiny.workspace(tiny_context, run_id))
    advance(tiny_context, run_id, "purging")
    completion.purge(tiny.workspace(tiny_context, run_id))
    completion.complete(tiny.workspace(tiny_context, run_id))
    with session(tiny_context.engine) as s:
        _, key = api_keys.create_key(s, name="a", scopes=[api_keys.AUDIT], now=tiny_context.now(), key_id="auditor")
        s.commit()
    client = TestClient(create_console(tiny_context))
    client.auth = ("auditor", key)
    failed, passed = sorted(tiny.certificates(tiny_context), key=lambda record: record.log_index)
    return Erased(tiny_context, client, failed, passed, run_id)


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
