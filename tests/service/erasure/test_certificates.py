from __future__ import annotations

import copy
import hmac
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from audit.proof.certificate import verify
from service.erasure.certificates import NO_MODEL, Issuer
from service.erasure.plan import RunPlan
from service.erasure.purge_record import (
    COPIES,
    FEATURES_AND_EXPOSURE,
    IMAGES,
    ORACLES,
    ORIGINALS,
    REFERENCES,
    VERSIONS,
    Facts,
    PurgeRecord,
)
from service.erasure.references import bank_plan
from service.keys.keyring import commitment
from service.models import registry
from service.store.engine import session
from service.store.tables import Run
from service.training import data
from tests.service import tiny


@pytest.fixture
def mixed(tiny_context):
    """A judged run of somebody the model learned from, somebody of the test split, and somebody unknown."""
    trained, tested = tiny.people(tiny_context)[0], tiny.people(tiny_context, "test")[0]
    run_id = tiny.plan_run(tiny_context, trained, tested, "nobody-we-know")
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    return run_id


def issuer_of(context, run_id):
    return Issuer(context, tiny.run_of(context, run_id), Facts.of(tiny.workspace(context, run_id)))


DESTROYED = {"image files": 7, "reference columns": 5, "older model versions": 1}


def purged(context, facts, request, barrier=None):
    """The record of a purge that was seen to destroy these things for one request, and nothing for others."""
    at = context.now().isoformat()
    return PurgeRecord(
        facts, began_at=at, held={}, barrier=barrier, destroyed={request.id: DESTROYED},
        data_digest_after="d" * 64, finished_at=at,
    )  # fmt: skip


def issue(context, run_id, number, barrier=None):
    """Certificate of the run's request of this number, its text as people get it."""
    request = tiny.requests(context)[number]
    with session(context.engine) as s:
        issuer = issuer_of(context, run_id)
        issuer.erasures(s, [request], tiny.attempts(context)[0], purged(context, issuer.facts, request, barrier))
        s.commit()
    return tiny.certificates(context)[-1].envelope


def test_a_certificate_verifies_offline_with_weights_and_log(tiny_context, mixed):
    certificate = issue(tiny_context, mixed, 0)
    candidate = tiny_context.settings.runs_folder / mixed / "step-1.safetensors"
    leaves = [leaf.entry for leaf in tiny.log_entries(tiny_context)]
    key = tiny_context.keyring.public_key
    result = verify(certificate, public_key=key, weights_path=candidate, log_leaves=leaves)
    assert result.valid, result.checks
    assert result.verdict == "PASSED"
    assert {check.name for check in result.checks} >= {"signature", "key", "log", "weights", "whole log"}
    base = registry.path(tiny_context.settings, tiny.run_of(tiny_context, mixed).base_digest)
    assert not verify(certificate, weights_path=base).valid


def test_an_altered_certificate_does_not_verify(tiny_context, mixed):
    certificate = copy.deepcopy(issue(tiny_context, mixed, 0))
    payload = certificate["envelope"]["payload"]
    certificate["envelope"]["payload"] = ("A" if payload[0] != "A" else "B") + payload[1:]
    assert not verify(certificate).valid


def test_it_commits_to_the_person_and_names_nobody(tiny_context, mixed):
    request = tiny.requests(tiny_context)[0]
    statement = verify(issue(tiny_context, mixed, 0)).statement
    expected = commitment(bytes.fromhex(request.commitment_salt), request.user_id)
    assert statement["predicate"]["subject_commitments"] == [expected]
    assert statement["predicate"]["request_id"] == request.id
    everybody = tiny.people(tiny_context) + tiny.people(tiny_context, "test")
    assert not any(person in json.dumps(statement) for person in everybody)


def test_it_says_how_the_weights_were_made_and_judged(tiny_context, mixed):
    predicate = verify(issue(tiny_context, mixed, 0)).statement["predicate"]
    run, plan = tiny.run_of(tiny_context, mixed), tiny.workspace(tiny_context, mixed).plan
    (attempt,) = tiny.attempts(tiny_context)
    procedure = predicate["procedure"]
    assert (procedure["method"], procedure["rung"], procedure["seed"]) == ("retrain", tiny.RETRAIN, attempt.seed)
    assert procedure["recipe_digest"] == data.recipe_of(tiny_context).digest
    assert "recipe" not in procedure["settings"]
    assert (procedure["data_digest_before"], procedure["data_digest_after"]) == (plan.manifest_digest, "d" * 64)
    assert predicate["bank_keys"] == [bank_plan(tiny.workspace(tiny_context, mixed)).key.digest]
    assert predicate["policy"] == {"name": "tiny", "digest": tiny.POLICY.digest}
    assert (predicate["base_digest"], predicate["run_id"]) == (run.base_digest, run.id)
    assert {check["name"] for check in predicate["checks"]} >= {"bank_size", "exchangeability", "cost_share"}
    assert predicate["purge"]["destroyed"] == DESTROYED


@pytest.mark.parametrize("number", [1, 2])
def test_nothing_was_required_for_people_no_model_learned_from(tiny_context, mixed, number):
    certificate = issue(tiny_context, mixed, number)
    result = verify(certificate, public_key=tiny_context.keyring.public_key)
    assert result.valid, result.checks
    assert (result.verdict, result.erased) == ("NOT_REQUIRED", True)
    predicate = result.statement["predicate"]
    assert predicate["checks"] == predicate["bank_keys"] == predicate["barrier"] == []
    run, procedure = tiny.run_of(tiny_context, mixed), predicate["procedure"]
    how = [procedure[name] for name in ("method", "rung", "settings", "seed")]
    assert how == ["none", 0, {}, run.seed]
    assert procedure["data_digest_after"] == "d" * 64
    assert predicate["purge"]["destroyed"] == DESTROYED
    (subject,) = result.statement["subject"]
    assert subject["digest"]["sha256"] == run.candidate_digest


OPEN = ("settings", "versions", "checks", "figures", "cost")  # what is in these differs from method to method
EVIDENCE = Path(__file__).parents[3] / "docs" / "certificate-evidence.md"


def fields_of(value, place=""):
    """Names of a statement's fields, as the table of the documentation has them; the predicate's without its name."""
    if isinstance(value, dict) and place.rpartition(".")[2] not in OPEN:
        return {found for name, item in value.items() for found in fields_of(item, f"{place}.{name}".lstrip("."))}
    if isinstance(value, list) and value and isinstance(value[0], dict) and place.rpartition(".")[2] not in OPEN:
        return fields_of(value[0], place)
    return {place.removeprefix("predicate.")}


def test_every_field_is_in_the_table_of_what_it_rests_on_and_no_other(tiny_context, mixed):
    at = tiny_context.now().isoformat()
    processes = [{"kind": "acknowledged", "boot_id": "a", "acknowledged_generation": 1, "acknowledged_at": at}]
    issuer = issuer_of(tiny_context, mixed)
    issuer.run.generation = 1
    request, attempt = tiny.requests(tiny_context)[0], tiny.attempts(tiny_context)[0]
    record = replace(
        purged(tiny_context, issuer.facts, request, {"processes": processes}),
        rerun={"chosen": False, "share": 0.1, "key_sha256": "a" * 64, "weights_digest": None},
        destroyed={
            request.id: dict.fromkeys(
                (IMAGES, COPIES, REFERENCES, ORACLES, ORIGINALS, FEATURES_AND_EXPOSURE, VERSIONS), 1
            )
        },
    )
    with session(tiny_context.engine) as s:
        issuer.erasures(s, [request], attempt, record)
        s.commit()
    statement = verify(tiny.certificates(tiny_context)[-1].envelope).statement
    table = EVIDENCE.read_text().partition("Around the statement")[0]
    documented = {
        name for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)
    }
    assert fields_of(statement) == documented


def test_a_service_without_a_model_certifies_too(context):
    now = context.now()
    (request_id,) = tiny.file(context, "s31")
    run = Run(
        id="run", line="default", stage="purging", base_digest="", policy_digest=tiny.POLICY.digest, seed=1,
        created_at=now, updated_at=now,
    )  # fmt: skip
    nothing = {request_id: 0}
    work = tiny.workspace(context, run.id)
    plan = RunPlan("", [], [], [], nothing, nothing, {}, policy_name="tiny", recipe_digest=work.recipe.digest)
    work.folder.write("plan", asdict(plan))
    issuer, request = Issuer(context, run, Facts.of(work)), tiny.request_of(context, request_id)
    with session(context.engine) as s:
        issuer.erasures(s, [request], None, purged(context, issuer.facts, request))
        s.commit()
    result = verify(tiny.certificates(context)[0].envelope)
    assert result.valid, result.checks
    assert result.statement["subject"][0]["digest"]["sha256"] == NO_MODEL


def test_only_processes_that_acknowledged_are_cited(tiny_context, mixed):
    with session(tiny_context.engine) as s:
        run = s.get_one(Run, mixed)
        run.generation = 2
        s.add(run)
        s.commit()
    at = tiny_context.now().isoformat()
    rows = [
        {"kind": "acknowledged", "boot_id": "a", "acknowledged_generation": 2, "acknowledged_at": at},
        {"kind": "fenced", "boot_id": "b", "acknowledged_generation": 1, "acknowledged_at": None},
        {"kind": "ended", "boot_id": "c", "acknowledged_generation": 1, "acknowledged_at": None},
    ]
    predicate = verify(issue(tiny_context, mixed, 0, {"processes": rows})).statement["predicate"]
    assert [row["boot_id"] for row in predicate["barrier"]] == ["a"]
    assert predicate["generation"] == 2


def test_the_same_rows_are_committed_to_alike_and_others_not(tiny_context, mixed):
    def committed():
        return verify(issue(tiny_context, mixed, 0)).statement["predicate"]["procedure"]["forget_commitment"]

    first = committed()
    assert committed() == first
    work = tiny.workspace(tiny_context, mixed)
    work.plan.forget.append(0)
    issuer = Issuer(tiny_context, tiny.run_of(tiny_context, mixed), Facts.of(work))
    with session(tiny_context.engine) as s:
        issuer.failure(s, tiny.attempts(tiny_context)[0].model_copy(update={"verdict": "FAILED"}), ())
        s.commit()
    other = verify(tiny.certificates(tiny_context)[-1].envelope).statement["predicate"]
    assert other["procedure"]["forget_commitment"] != first


def test_a_certificate_is_of_the_caller_s_transaction(tiny_context, mixed):
    before = tiny.log_entries(tiny_context)
    with session(tiny_context.engine) as s:
        request = tiny.requests(tiny_context)[0]
        issuer = issuer_of(tiny_context, mixed)
        issuer.erasures(s, [request], tiny.attempts(tiny_context)[0], purged(tiny_context, issuer.facts, request))
        s.rollback()
    assert tiny.certificates(tiny_context) == []
    assert tiny.log_entries(tiny_context) == before


def test_how_the_weights_were_made_is_what_the_attempt_wrote_down(tiny_context, mixed):
    """Not what the process that signs would make them with."""
    (attempt,), issuer = tiny.attempts(tiny_context), issuer_of(tiny_context, mixed)
    made_with = {"versions": {"torch": "of another day"}, "device": "cuda: of another machine"}
    attempt.figures = {**attempt.figures, "made_with": made_with, "cost_share": 0.25}
    attempt.verdict = "FAILED"
    facts = replace(issuer.facts, methods={"retrain": {"epochs": 3}})
    with session(tiny_context.engine) as s:
        replace(issuer, facts=facts).failure(s, attempt, ("a" * 64, "b" * 64))
        s.commit()
    predicate = verify(tiny.certificates(tiny_context)[-1].envelope).statement["predicate"]
    procedure = predicate["procedure"]
    assert {name: procedure[name] for name in made_with} == made_with
    assert procedure["settings"] == {"epochs": 3}
    assert procedure["data_digest_after"] == procedure["data_digest_before"] == facts.manifest_digest
    assert predicate["cost"] == {"share_of_retraining": 0.25, **attempt.figures["price"]}
    assert "price" not in predicate["figures"]
    assert predicate["checks"] == attempt.figures["checks"]
    assert not predicate["figures"].keys() & {"checks", "made_with"}
    assert predicate["subject_commitments"] == ["a" * 64, "b" * 64]
    assert (predicate["request_id"], predicate["purge"]) == (None, None)


def test_the_forgotten_rows_are_committed_to_with_the_service_s_own_key(tiny_context, mixed):
    work = tiny.workspace(tiny_context, mixed)
    rows = json.dumps([work.plan.manifest_digest, work.plan.forget]).encode()
    expected = hmac.digest(tiny_context.keyring.tombstone_key, rows, "sha256").hex()
    assert Facts.of(work).forget_commitment == expected
