"""Stored qualifications: which one is valid, why another is not, and what an erasure takes along; none is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session, col, select

from audit.policy import PRESETS
from audit.proof import envelope as dsse
from audit.proof.certificate import openssl_recipe, verify
from audit.proof.qualification import LIMITS, PREDICATE_TYPE
from audit.qualification import Bars
from service.banks.qualifications import (
    DRIFT_MAX,
    RENEW_DAYS,
    Identity,
    Qualified,
    count_subjects,
    find_valid,
    forget_probes,
    is_due,
    newest_results,
    read_record,
)
from service.context import Context
from service.store.engine import reading, session
from service.store.tables import ErasureRequest, LogLeaf, Qualification, Tombstone, TunedSubject
from tests.service import tiny
from tests.service.qualified import BARS, N_SUBJECTS, write_qualification
from tests.waiting import PATIENCE_SECONDS
from unlearning.errors import MethodError
from unlearning.methods import settings_for
from unlearning.recipes import RECIPES

pytestmark = pytest.mark.both_databases

RECIPE = RECIPES["att_small"]

OPTIONS = settings_for("remix", RECIPE).to_dict()


@pytest.fixture
def store(context: Context) -> Callable[..., str]:
    """Write a qualification; gives its id."""
    return partial(write_qualification, context)


def ask(context: Context, **changes: Any) -> Qualified | str:
    values: dict[str, Any] = {"method": "remix", "options": OPTIONS, "recipe": RECIPE, "n_subjects_now": N_SUBJECTS}
    return find_valid(context, **{**values, **changes})


def change(context: Context, row_id: str, update: Callable[[Qualification], None]) -> None:
    with session(context.engine) as s:
        row = s.get_one(Qualification, row_id)
        update(row)
        s.add(row)
        s.commit()


def erase(s: Session, context: Context, who: str) -> None:
    """The row that a completed erasure leaves."""
    now = context.now()
    s.add(
        ErasureRequest(
            id=context.new_id(), client_id="c", state="completed", outcome="erased",
            subject_hash=context.keyring.subject_hash(who), commitment="", commitment_salt=None, regulation="gdpr",
            ground="g", requested_at=now, received_at=now, filed_at=now, hold_until=now, due_at=now, updated_at=now,
            completed_at=now,
        )
    )  # fmt: skip


def test_a_valid_one_is_found_with_what_a_certificate_cites(context: Context, store: Any, clock: Any) -> None:
    row_id = store()
    clock.advance(days=10)
    found = ask(context, bars=BARS)
    assert isinstance(found, Qualified)
    with reading(context.engine) as s:
        row = s.get_one(Qualification, row_id)
        leaf = s.get_one(LogLeaf, found.log_index)
    assert (found.id, found.method, found.n_probes, found.statement) == (row_id, "remix", 3, "All 3 of 3.")
    assert found.expires_at == row.expires_at
    assert json.loads(leaf.entry)["envelope_sha256"] == found.envelope_sha256
    assert leaf.kind == "qualification"


def test_a_method_never_qualified(context: Context) -> None:
    assert ask(context) == "remix was never qualified; run `expunge qualify remix`."


def test_an_unknown_method(context: Context) -> None:
    with pytest.raises(MethodError, match="Unknown method 'hope'"):
        ask(context, method="hope")


def test_one_without_a_result_is_to_be_finished(context: Context, store: Any) -> None:
    store(passed=None)
    assert ask(context) == (
        "The qualification of remix begun on 2026-01-31 has no result yet; run `expunge qualify remix` to go on with "
        "it."
    )


def test_a_failed_one_says_why_and_outweighs_an_older_one(context: Context, store: Any, clock: Any) -> None:
    store()
    clock.advance(days=1)
    store(passed=False)
    assert ask(context) == "remix failed its qualification on 2026-02-01: 2 of 3. Probe 2: it did not."
    clock.advance(days=1)
    store()
    assert isinstance(ask(context), Qualified)


def test_one_begun_anew_leaves_the_old_one_valid(context: Context, store: Any, clock: Any) -> None:
    store()
    clock.advance(days=1)
    store(passed=None)
    assert isinstance(ask(context), Qualified)


def test_an_expired_one(context: Context, store: Any, clock: Any) -> None:
    store()
    clock.advance(days=179, hours=23)
    assert isinstance(ask(context), Qualified)
    clock.advance(hours=1)
    assert ask(context) == "The qualification of remix expired on 2026-07-30; run `expunge qualify remix`."


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"recipe_digest": "other"}, "another recipe"),
        ({"settings_digest": "other"}, "other settings"),
        ({"method_code": "other"}, "another version of its code"),
        ({"training_code": "other"}, "another version of its code"),
    ],
)
def test_one_of_something_else(context: Context, store: Any, changes: dict[str, str], what: str) -> None:
    store(**changes)
    assert ask(context) == f"remix was qualified with {what} only; run `expunge qualify remix`."


def test_other_settings_are_another_method(context: Context, store: Any) -> None:
    store()
    assert "other settings" in str(ask(context, options={**OPTIONS, "epochs": 99.0}))
    assert "another recipe" in str(ask(context, recipe=RECIPES["synthetic_small"]))
    store(method="random_mask")
    assert "was never qualified" in str(ask(context, method="dilute", options={}))


def test_results_at_other_bars_count_for_what_they_say(context: Context, store: Any, clock: Any) -> None:
    """Passed at stricter bars says passed at lower ones; failed at lower ones says failed at stricter ones."""
    strict = Bars.of(PRESETS["strict"])
    store()
    assert ask(context, bars=strict) == "remix passed lower bars than the policy's only; run `expunge qualify remix`."
    clock.advance(days=1)
    store(passed=False, bars=strict)
    assert isinstance(ask(context, bars=BARS), Qualified)
    assert "failed its qualification" in str(ask(context, bars=strict))
    clock.advance(days=1)
    store(bars=strict)
    assert isinstance(ask(context, bars=strict), Qualified)
    assert isinstance(ask(context, bars=BARS), Qualified)


def test_failed_at_higher_bars_only(context: Context, store: Any) -> None:
    store(passed=False, bars=Bars.of(PRESETS["strict"]))
    assert ask(context, bars=BARS) == (
        "remix failed at higher bars than the policy's only, which says nothing of these; run `expunge qualify remix`."
    )


def _alter_payload(row: Qualification) -> None:
    record = json.loads(json.dumps(row.record))
    payload = record["envelope"]["payload"]
    record["envelope"]["payload"] = payload[:40] + ("A" if payload[40] != "A" else "B") + payload[41:]
    row.record = record


def _sign_anew(row: Qualification) -> None:
    """By a key that is not the service's."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, record = Ed25519PrivateKey.generate(), json.loads(json.dumps(row.record))
    payload = dsse.read_payload(record["envelope"])
    record["envelope"] = dsse.seal(payload, sign=key.sign, public_key=key.public_key())
    row.record = record


@pytest.mark.parametrize(
    "update",
    [
        _alter_payload,
        _sign_anew,
        lambda row: setattr(row, "record", None),
        lambda row: setattr(row, "record", {"envelope": 3}),
        lambda row: setattr(row, "log_index", 0),
        lambda row: setattr(row, "lot_log_index", 1),
        lambda row: setattr(row, "bars", {**row.bars, "cost_share_max": 0.1}),
        lambda row: setattr(row, "bars", {"cost_share_max": 7}),
    ],
)
def test_an_altered_record_is_worth_nothing(context: Context, store: Any, update: Any) -> None:
    change(context, store(), update)
    assert ask(context, bars=BARS) == (
        "The record of the qualification of remix was altered after it was signed; run `expunge qualify remix`."
    )


def test_a_failed_one_cannot_be_made_to_pass(context: Context, store: Any) -> None:
    change(context, store(passed=False), lambda row: setattr(row, "passed", True))
    assert "was altered" in str(ask(context))


def test_a_record_of_other_settings_does_not_serve(context: Context, store: Any) -> None:
    """Somebody writes the settings in force into the row of a qualification of other ones."""
    row_id = store(settings_digest="other")
    digest = Identity.of("remix", OPTIONS, RECIPE).settings_digest
    change(context, row_id, lambda row: setattr(row, "settings_digest", digest))
    assert "was altered" in str(ask(context))


@pytest.mark.parametrize(("n_erased", "n_added"), [(0, 0), (8, 0), (4, 5), (0, 9)])
def test_data_may_drift_by_a_fifth(context: Context, store: Any, clock: Any, n_erased: int, n_added: int) -> None:
    """As many erased as added leave the number of subjects as it was; both count."""
    assert DRIFT_MAX == 0.2
    with session(context.engine) as s:
        erase(s, context, "before")
        s.commit()
    clock.advance(days=1)
    store()
    clock.advance(days=1)
    with session(context.engine) as s:
        for number in range(n_erased):
            erase(s, context, f"gone {number}")
        s.commit()
    found = ask(context, n_subjects_now=N_SUBJECTS - n_erased + n_added)
    if n_erased + n_added <= 8:
        assert isinstance(found, Qualified)
    else:
        assert found == (
            f"Since the qualification of remix on 2026-02-01, of 40 subjects {n_erased} were erased and {n_added} "
            "came, more than 20 %; run `expunge qualify remix`."
        )


def test_an_erased_probe_subject_leaves_only_a_commitment(context: Context, store: Any) -> None:
    row_id, tag = store(), context.keyring.block_hash("ben")
    salt_and_tag = (b"salt".hex(), tag)
    with session(context.engine) as s:
        s.add(TunedSubject(method="remix", recipe_digest="r", tag=tag))
        s.add(TunedSubject(method="remix", recipe_digest="r", tag="other"))
        assert forget_probes(s, [tag, context.keyring.block_hash("nobody")]) == 2
        s.commit()
    with session(context.engine) as s:
        assert forget_probes(s, [tag]) == 0
        row = s.get_one(Qualification, row_id)
        assert [each.tag for each in s.exec(select(TunedSubject))] == ["other"]
        assert read_record(context, s, row) is not None
    assert (len(row.probes), row.n_probes, row.n_probes_erased) == (2, 3, 1)
    assert tag not in json.dumps(row.model_dump(mode="json"))
    assert salt_and_tag[1] not in json.dumps(row.record)
    found = ask(context)
    assert isinstance(found, Qualified)
    assert found.statement == "All 3 of 3. 1 probe subject was erased since."


def test_the_newest_result_of_each_method(context: Context, store: Any, clock: Any) -> None:
    store()
    clock.advance(days=1)
    newest = store(passed=False)
    clock.advance(days=1)
    store(passed=None)
    store(method="random_mask", passed=None)
    with reading(context.engine) as s:
        assert {method: row.id for method, row in newest_results(s).items()} == {"remix": newest}


def test_a_record_is_verified_by_hand(context: Context, store: Any, tmp_path: Path) -> None:
    """With OpenSSL, like a certificate; it names its own type and its limits."""
    import subprocess

    row_id = store()
    with reading(context.engine) as s:
        record = s.get_one(Qualification, row_id).record
    assert record is not None
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record, indent=2))
    done = subprocess.run(
        ["bash", "-c", openssl_recipe(file)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert "Signature Verified Successfully" in done.stdout, done.stderr
    statement = json.loads((tmp_path / "statement.json").read_text())
    assert statement["predicateType"] == PREDICATE_TYPE
    assert statement["predicate"]["limits"] == list(LIMITS)
    assert statement["subject"][0]["name"] == "remix"


@pytest.mark.parametrize("passed", [True, False])
def test_a_record_is_verified_offline_with_its_lot(context: Context, store: Any, passed: bool) -> None:
    row_id = store(passed=passed)
    with reading(context.engine) as s:
        row = s.get_one(Qualification, row_id)
        leaves = [leaf.entry for leaf in s.exec(select(LogLeaf).order_by(col(LogLeaf.index)))]
    assert row.record is not None
    found = verify(row.record, public_key=context.keyring.public_key, log_leaves=leaves)
    assert found.valid, found.checks
    assert found.verdict == ("QUALIFIED" if passed else "NOT QUALIFIED")
    assert not found.erased
    said = {check.name: check for check in found.checks}
    assert said["lot"].sentence == "Entry 0 of the log is its lot, drawn before it with the same probes."
    assert said["statement"].sentence == "It certifies that remix " + (
        "qualified, until 2026-07-30, by lot number 1 for this method and these data. All 3 of 3."
        if passed
        else "did not qualify, by lot number 1 for this method and these data. 2 of 3."
    )
    assert {check.name: check.passed for check in verify(row.record).checks}["lot"] is None


def test_a_record_of_another_lot_is_not_valid(context: Context, store: Any) -> None:
    """The signature holds, but the log drew other probes, or drew them later."""
    row_id = store()
    with reading(context.engine) as s:
        row = s.get_one(Qualification, row_id)
        leaves = [leaf.entry for leaf in s.exec(select(LogLeaf).order_by(col(LogLeaf.index)))]
    assert row.record is not None
    for other in ("{}", "no JSON", leaves[0].replace('"n_runs":24', '"n_runs":25'), leaves[1]):
        found = verify(row.record, log_leaves=[other, *leaves[1:]])
        said = {check.name: check.passed for check in found.checks}
        assert not found.valid
        assert said["signature"]
        assert said["lot"] is False
        assert said["whole log"] is False


def test_subjects_are_counted_without_those_who_wait(tiny_context: Context) -> None:
    assert count_subjects(tiny_context) == 40
    with session(tiny_context.engine) as s:
        hashed = tiny_context.keyring.subject_hash(tiny.people(tiny_context)[0])
        s.add(Tombstone(subject_hash=hashed, created_at=tiny_context.now()))
        s.commit()
    assert count_subjects(tiny_context) == 39


def due(context: Context) -> bool:
    return is_due(context, method="remix", options=OPTIONS, recipe=RECIPE, n_subjects_now=N_SUBJECTS, bars=BARS)


def test_a_method_without_a_result_is_due(context: Context, store: Callable[..., str]) -> None:
    assert due(context)
    store(passed=None)  # begun
    assert due(context)


@pytest.mark.parametrize("passed", [True, False])
def test_a_result_is_not_asked_for_again_before_it_ends_soon(
    context: Context, store: Callable[..., str], passed: bool
) -> None:
    store(passed=passed)
    assert not due(context)
    context.now.advance(days=180 - RENEW_DAYS + 1)
    assert due(context)


def test_a_method_that_failed_with_other_settings_is_due(context: Context, store: Callable[..., str]) -> None:
    store(passed=False, settings_digest="other")
    assert due(context)
