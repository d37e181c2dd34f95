"""Certificates: what may be said, that every alteration is seen, and that openssl alone agrees."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.proof import envelope as dsse
from audit.proof import log
from audit.proof.certificate import (
    LIMITS,
    Acknowledgement,
    Certificate,
    CertificateError,
    Procedure,
    Purge,
    certificate_file,
    log_entry,
    openssl_recipe,
    seal,
    verify,
)
from audit.proof.envelope import key_id, public_keys_pem, read_published_keys
from tests.waiting import PATIENCE_SECONDS

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
WEIGHTS = b"weights"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NEW_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def digest_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def passed(**changes: Any) -> Certificate:
    procedure = Procedure(
        method="kookmin",
        rung=0,
        settings={"learning_rate": 1e-3},
        seed=7,
        recipe_digest=digest_of("recipe"),
        data_digest_before=digest_of("before"),
        data_digest_after=digest_of("after"),
        forget_commitment=digest_of("forget"),
        versions={"torch": "2.14.1"},
        device="cpu",
    )
    contents = Certificate(
        verdict="PASSED",
        run_id="run-1",
        request_id="request-1",
        subject_commitments=(digest_of("commitment"),),
        model_name="faces",
        weights_digest=sha256(WEIGHTS).hexdigest(),
        base_digest=digest_of("base"),
        procedure=procedure,
        checks=({"name": "ratio", "value": np.float64(0.91), "bar": 0.5, "passed": np.True_, "sentence": "…"},),
        figures={"epsilon": np.array([1.5, np.nan, np.inf])},
        policy_name="standard",
        policy_digest=digest_of("policy"),
        bank_keys=(digest_of("bank"),),
        cost={"unlearning_seconds": 1.25},
        issued_at=NOW,
        generation=2,
        barrier=(Acknowledgement("boot-a", 2, NOW), Acknowledgement("boot-b", 2, NOW)),
        purge=Purge({"image files": 10, "older weights": 1}, NOW, "All of the folder.", 0),
    )
    return replace(contents, **changes)


def failed(**changes: Any) -> Certificate:
    return passed(
        **{"verdict": "FAILED", "request_id": None, "generation": None, "barrier": (), "purge": None, **changes}
    )


@dataclass(frozen=True)
class Issued:
    text: str
    entries: tuple[bytes, ...]

    @property
    def content(self) -> dict[str, Any]:
        return json.loads(self.text)


def issue(contents: Certificate, *, key: Ed25519PrivateKey = KEY, log_key: Ed25519PrivateKey | None = None) -> Issued:
    log_key = log_key or key
    envelope = seal(contents, sign=key.sign, public_key=key.public_key())
    before = [log.entry("policy", digest=digest_of(str(i))) for i in range(4)]
    entries = (*before, log_entry(envelope), log.entry("policy", digest="later"))
    leaves = [log.leaf_hash(item) for item in entries]
    head = log.Checkpoint("expunge.example/log", len(leaves), log.root(leaves))
    keys = [key.public_key()] + ([log_key.public_key()] if log_key is not key else [])
    text = certificate_file(
        envelope,
        index=4,
        inclusion_proof=log.inclusion_proof(4, leaves),
        checkpoint=log.sign_checkpoint(head, sign=log_key.sign, public_key=log_key.public_key()),
        public_keys=keys,
    )
    return Issued(text, entries)


GOOD = issue(passed())


def outcome(certificate: Any, **options: Any) -> dict[str, bool | None]:
    return {check.name: check.passed for check in verify(certificate, **options).checks}


def test_statement_is_in_toto_about_the_weights() -> None:
    statement = passed().statement
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "faces", "digest": {"sha256": sha256(WEIGHTS).hexdigest()}}]
    predicate = statement["predicate"]
    assert predicate["figures"] == {"epsilon": [1.5, None, "inf"]}
    assert predicate["checks"][0]["value"] == 0.91
    assert predicate["barrier"][1]["acknowledged_at"] == "2026-03-01T12:30:00Z"
    assert predicate["purge"]["destroyed"]["image files"] == 10
    assert predicate["limits"] == list(LIMITS)
    assert json.loads(log.canonical_json(statement)) == statement


def test_nothing_claims_proof_of_deletion() -> None:
    text = json.dumps(passed().statement).lower()
    assert "proves" not in text
    assert "proof of deletion" not in text


def test_where_no_model_had_learned_from_the_person_nothing_was_audited_but_data_were_destroyed() -> None:
    verification = verify(issue(passed(verdict="NOT_REQUIRED", barrier=(), checks=())).content)
    assert verification.erased
    assert "no model had learned from the subject" in verification.checks[2].sentence


def test_a_swap_while_nobody_served_has_no_barrier() -> None:
    assert verify(issue(passed(barrier=())).content).erased


def test_any_mapping_will_do() -> None:
    assert passed(cost=MappingProxyType({"share": 0.1})).statement["predicate"]["cost"] == {"share": 0.1}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: passed(verdict="OK"), "verdict"),
        (lambda: passed(weights_digest="abc"), "weights_digest"),
        (lambda: passed(policy_digest="A" * 64), "policy_digest"),
        (lambda: passed(purge=None), "a purge with the barrier"),
        (lambda: passed(verdict="FAILED"), "never deploys"),
        (lambda: passed(verdict="FAILED", barrier=()), "nothing is destroyed"),
        (lambda: passed(verdict="NOT_REQUIRED"), "no barrier"),
        (lambda: passed(generation=3), "generation 3"),
        (lambda: passed(issued_at=NOW.replace(tzinfo=None)), "naive"),
        (lambda: passed(purge=Purge({}, NOW.replace(tzinfo=None), "", 0)), "naive"),
    ],
)
def test_contradictions_are_refused(make: Callable[[], Certificate], sentence: str) -> None:
    with pytest.raises(CertificateError, match=sentence):
        make()


def test_good_file_from_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(GOOD.text, encoding="utf-8")
    found = verify(path)
    assert found.valid
    assert found.erased
    assert found.verdict == "PASSED"
    assert {c.name: c.passed for c in found.checks} == {
        "signature": True,
        "key": None,
        "statement": True,
        "checkpoint": True,
        "log": True,
    }
    assert any("comes from the file itself" in check.sentence for check in found.checks)
    assert any("2 serving processes" in check.sentence and "10 image files" in check.sentence for check in found.checks)


def test_pinned_key() -> None:
    assert outcome(GOOD.content, public_key=KEY.public_key())["key"] is True
    found = verify(GOOD.content, public_key=NEW_KEY.public_key())
    assert not found.valid
    assert found.verdict is None
    assert not verify(GOOD.content, public_key=[]).valid


def test_rotation_keeps_old_certificates_valid() -> None:
    keys = [NEW_KEY.public_key(), KEY.public_key()]
    assert verify(GOOD.content, public_key=keys).valid
    assert verify(issue(passed(), key=NEW_KEY).content, public_key=keys).valid
    across = issue(passed(), key=KEY, log_key=NEW_KEY)  # sealed before the rotation, checkpoint after it
    assert verify(across.content).valid
    assert verify(across.content, public_key=keys).valid
    assert outcome(across.content, public_key=KEY.public_key())["checkpoint"] is False


def test_what_a_retired_key_signed_later_is_refused() -> None:
    keys, signer = [NEW_KEY.public_key(), KEY.public_key()], key_id(KEY.public_key())
    for days, genuine in ((1, True), (0, True), (-1, False)):
        found = verify(GOOD.content, public_key=keys, retired_at={signer: NOW + timedelta(days=days)})
        assert found.valid is genuine, found.checks
    assert verify(GOOD.content, public_key=keys, retired_at={key_id(NEW_KEY.public_key()): NOW}).valid


def test_published_keys_are_read_as_pem_or_as_json() -> None:
    pem = public_keys_pem([NEW_KEY.public_key(), KEY.public_key()])
    keys, retired_at = read_published_keys(pem.encode())
    assert ([key_id(key) for key in keys], retired_at) == (
        [key_id(NEW_KEY.public_key()), key_id(KEY.public_key())],
        {},
    )
    rows = [
        {"pem": public_keys_pem([NEW_KEY.public_key()]), "valid_until": None},
        {"pem": public_keys_pem([KEY.public_key()]), "valid_until": NOW.isoformat()},
    ]
    keys, retired_at = read_published_keys(json.dumps({"keys": rows}).encode())
    assert len(keys) == 2
    assert retired_at == {key_id(KEY.public_key()): NOW}
    for bad in (b"{", b'{"keys": 1}', b'{"keys": [{}]}', b'{"keys": [{"pem": "x"}]}', b""):
        with pytest.raises(CertificateError):
            read_published_keys(bad)


def test_a_second_candidate_stands_in_the_certificate() -> None:
    share = {"share": 0.1, "key_sha256": "c" * 64}
    twice = passed(rerun={**share, "chosen": True, "weights_digest": passed().weights_digest})
    assert outcome(issue(twice).content)["re-run"] is True
    once = passed(rerun={**share, "chosen": False, "weights_digest": None})
    found = verify(issue(once).content)
    assert (found.valid, outcome(issue(once).content)["re-run"]) == (True, None)
    with pytest.raises(CertificateError, match="second candidate"):
        passed(rerun={**share, "chosen": True, "weights_digest": "e" * 64})


def test_weights(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(WEIGHTS)
    assert verify(GOOD.content, weights_path=weights).valid
    weights.write_bytes(WEIGHTS + b"!")
    assert outcome(GOOD.content, weights_path=weights)["weights"] is False
    assert outcome(GOOD.content, weights_path=tmp_path / "absent")["weights"] is False


def test_whole_log() -> None:
    assert outcome(GOOD.content, log_leaves=GOOD.entries)["whole log"] is True
    assert outcome(GOOD.content, log_leaves=[*(e.decode() for e in GOOD.entries), "grown"])["whole log"] is True
    assert outcome(GOOD.content, log_leaves=GOOD.entries[:-1])["whole log"] is False
    assert outcome(GOOD.content, log_leaves=[b"rewritten", *GOOD.entries[1:]])["whole log"] is False


def test_failed_audits_have_certificates_that_claim_no_erasure() -> None:
    found = verify(issue(failed()).content)
    assert found.valid
    assert found.verdict == "FAILED"
    assert not found.erased
    assert any("not deployed" in check.sentence for check in found.checks)
    audit_only = verify(issue(passed(barrier=(), purge=None)).content)
    assert audit_only.valid
    assert not audit_only.erased


def test_certificate_of_another_log_place_is_refused() -> None:
    content = GOOD.content
    content["log"] = issue(failed()).content["log"]
    assert outcome(content)["log"] is False
    assert outcome(content)["checkpoint"] is True


def url_safe(text: str, *, padded: bool) -> str:
    text = text.translate(str.maketrans("+/", "-_"))
    return text if padded else text.rstrip("=")


@pytest.mark.parametrize("padded", [True, False])
def test_an_envelope_in_url_safe_base64_is_the_same_envelope(padded: bool) -> None:
    """DSSE, protocol: "either standard or URL-safe encoding is allowed", and other implementations write it."""
    special = next(
        issued.content for n in range(100) if "+" in (issued := issue(passed(run_id=f"run {n} ~~~???"))).text
    )
    envelope = special["envelope"]
    for payload in (False, True):
        for signature in (False, True):
            if payload:
                envelope["payload"] = url_safe(envelope["payload"], padded=padded)
            if signature:
                envelope["signatures"][0]["sig"] = url_safe(envelope["signatures"][0]["sig"], padded=padded)
            assert verify(special, public_key=KEY.public_key()).valid
    standard = {**GOOD.content["envelope"], "payload": GOOD.content["envelope"]["payload"].rstrip("=")}
    assert dsse.digest(standard) == dsse.digest(GOOD.content["envelope"])


@pytest.mark.parametrize(
    "text", ["+-==", "_/8=", "AB==", "AA=", "AA===", "A", "AA==AA==", "AA\n==", " AA==", "=", "AA=A"]
)
def test_other_spellings_of_base64_are_refused(text: str) -> None:
    with pytest.raises(CertificateError):
        dsse.read_payload({**GOOD.content["envelope"], "payload": text})


def test_resealing_with_another_key_fails_a_pin() -> None:
    forged = issue(passed(weights_digest=digest_of("other weights")), key=NEW_KEY)
    assert verify(forged.content).valid  # whole in itself, which is why the check on the key says so
    assert not verify(forged.content, public_key=KEY.public_key()).valid


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(GOOD.text) - 1), character=st.characters(codec="utf-8"))
def test_no_altered_character_goes_unseen(position: int, character: str) -> None:
    altered = GOOD.text[:position] + character + GOOD.text[position + 1 :]
    try:
        content = json.loads(altered)
    except ValueError:
        content = {}
    found = verify(content, public_key=KEY.public_key())
    if (
        found.valid
    ):  # then nothing that counts was altered: a keyid hint is covered by the log, the file's key is not used
        assert dsse.digest(content["envelope"]) == dsse.digest(GOOD.content["envelope"])
        assert content["log"] == GOOD.content["log"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"envelope": 1, "log": 2, "public_key_pem": 3}',
        b'{"envelope": {}, "log": {}, "public_key_pem": ""}',
        b'{"envelope": {}, "envelope": {}}',
        b'{"envelope": NaN}',
        b"[" * 100_000,
        b'{"envelope": "\\ud800", "log": {}, "public_key_pem": "\\ud800"}',
        GOOD.text.replace('"payloadType": "application/vnd.in-toto+json"', '"payloadType": "text/plain"').encode(),
        GOOD.text.replace('"index": 4', '"index": "four"').encode(),
        GOOD.text.replace('"index": 4', '"index": 99999999999999999999').encode(),
        GOOD.text.replace("\\n6\\n", "\\n6\\ud800\\n").encode(),
    ],
)
def test_rubbish_gives_a_sentence_and_no_exception(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "certificate.json"
    path.write_bytes(data)
    found = verify(path)
    assert not found.valid
    assert not found.erased
    assert all(check.sentence for check in found.checks)


def test_unreadable_and_huge_files(tmp_path: Path) -> None:
    assert not verify(tmp_path / "absent.json").valid
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(20_000_001)
    (check,) = verify(huge).checks
    assert "larger than" in check.sentence


def test_signed_nonsense_is_not_a_certificate() -> None:
    for statement in ({}, {**passed().statement, "_type": "other"}, {**passed().statement, "subject": []}):
        envelope = dsse.seal(log.canonical_json(statement), sign=KEY.sign, public_key=KEY.public_key())
        assert not verify({**GOOD.content, "envelope": envelope}).valid
    steering = passed(purge=Purge({"\x1b[2Jfiles": 1}, NOW, "", 0))
    assert not any("\x1b" in check.sentence for check in verify(issue(steering).content).checks)


def test_published_pae() -> None:
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_envelope_keys() -> None:
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert dsse.key_id(KEY.public_key()) == sha256(spki).hexdigest()
    both = [KEY.public_key(), NEW_KEY.public_key()]
    assert [dsse.key_id(k) for k in dsse.read_public_keys(dsse.public_keys_pem(both))] == [dsse.key_id(k) for k in both]
    ec_pem = generate_ec_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for pem in (ec_pem, b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"):
        with pytest.raises(CertificateError):
            dsse.read_public_keys(pem)


@pytest.mark.parametrize("compact", [False, True])
def test_plain_openssl_agrees(tmp_path: Path, compact: bool) -> None:
    path = tmp_path / "it's a certificate.json"
    text = json.dumps(GOOD.content) if compact else GOOD.text
    path.write_text(text, encoding="utf-8")

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", openssl_recipe(path)], cwd=tmp_path, capture_output=True, text=True, check=False,
            timeout=PATIENCE_SECONDS,
        )  # fmt: skip

    good = run()
    assert good.returncode == 0, good.stderr
    assert "Signature Verified Successfully" in good.stdout
    assert dsse.key_id(KEY.public_key()) in good.stdout
    statement = json.loads((tmp_path / "statement.json").read_bytes())
    assert statement["subject"][0]["digest"]["sha256"] == sha256(WEIGHTS).hexdigest()

    statement["predicate"]["verdict"] = "FAILED"
    payload = base64.b64encode(log.canonical_json(statement)).decode()
    path.write_text(text.replace(GOOD.content["envelope"]["payload"], payload), encoding="utf-8")
    assert run().returncode != 0
