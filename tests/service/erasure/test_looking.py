"""What an audit asks of a candidate besides its margins: features, and who else became more exposed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from audit.policy import Policy
from audit.proof.certificate import verify
from service.banks import looks
from service.banks.build import stores
from service.banks.file_format import BESIDE, FEATURES, OTHERS
from service.banks.originals import build_originals, originals_plan
from service.banks.store import BankStore
from service.context import Context
from service.erasure.candidates import spec_of
from service.erasure.looking import NO_ORIGINALS, NOT_SEEN, OLD_REFERENCES
from service.erasure.references import bank_plan
from service.erasure.workspace import RunFolder
from service.training import data, spec
from service.training.jobs import run_trial
from tests.service import tiny

N_ORIGINALS = 4


@pytest.fixture
def person(tiny_context: Context) -> str:
    return tiny.people(tiny_context)[0]


@pytest.fixture
def run_id(tiny_context: Context, person: str) -> str:
    """A run whose references and originals were made ahead."""
    recipe, store = data.recipe_of(tiny_context), BankStore(tiny_context.settings.banks_folder)
    plan = originals_plan(tiny_context, recipe, data.images_in_service(tiny_context, recipe), ())
    build_originals(store, plan, N_ORIGINALS, tiny_context.settings, lambda *_: None, now=tiny_context.now())
    return tiny.plan_run(tiny_context, person)


def sentences(figures: dict) -> dict[str, str]:
    return {check["name"]: check["sentence"] for check in figures["checks"]}


def bank_of(context: Context, run_id: str, policy: Policy = tiny.POLICY):
    store = BankStore(context.settings.banks_folder)
    bank = store.find(bank_plan(tiny.workspace(context, run_id, policy)).key, n_models=tiny.POLICY.n_models)
    assert bank is not None
    return store, bank


def test_every_audit_asks_what_features_say_and_who_became_more_exposed(tiny_context: Context, run_id: str) -> None:
    assert not tiny.try_step(tiny_context, run_id, tiny.FINETUNE)
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    n_retained = len(tiny.people(tiny_context)) - 2  # without the block
    for attempt in tiny.attempts(tiny_context):
        looked = attempt.figures["looked"]
        gate = looked["features"]["gate"]
        assert (gate["n_choosing"], gate["n_judging"], gate["n_originals"]) == (2, 2, N_ORIGINALS)
        assert 0 <= looked["features"]["n_originals_told_apart"] <= N_ORIGINALS
        assert looked["exposure"]["n_subjects"] == n_retained
        said = sentences(attempt.figures)
        assert f"of {N_ORIGINALS} models trained with them" in said["features"]
        assert said["exposure"].startswith(f"Of {n_retained} retained subjects ")
        report = json.loads((tiny_context.settings.reports_folder / run_id / f"step-{attempt.step}.json").read_text())
        assert report["evaluation"]["looked"] == looked
    (record,) = tiny.certificates(tiny_context)  # of the candidate that failed
    predicate = verify(record.envelope, public_key=tiny_context.keyring.public_key).statement["predicate"]
    assert predicate["figures"]["looked"]["exposure"]["n_subjects"] == n_retained
    assert sentences(predicate) == sentences(tiny.attempts(tiny_context)[0].figures)


def test_what_references_and_candidate_are_compared_by_is_what_the_same_model_gives(
    tiny_context: Context, run_id: str
) -> None:
    """A reference in the candidate's place has the descriptors and the margins that lie beside its bank."""
    tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    work, (store, bank) = tiny.workspace(tiny_context, run_id), bank_of(tiny_context, run_id)
    plan = bank_plan(work)
    trial = replace(spec_of(work, "retrain"), retain=plan.spec.retain, sample=plan.sample)
    seen = run_trial(trial, int(bank.seeds[0])).looks
    assert seen is not None
    assert seen.descriptors is not None
    ids = tuple(plan.example_ids[plan.spec.scored.tolist().index(row)] for row in trial.scored.tolist())
    kept = looks.descriptors_beside(store, bank, len(bank.seeds), ids)
    tags, others = looks.others_beside(store, bank, len(bank.seeds))
    np.testing.assert_allclose(kept[0], seen.descriptors, rtol=1e-5, atol=1e-6)
    mine = dict(zip(plan.others, seen.others, strict=True))
    np.testing.assert_allclose(others[0], [mine[tag] for tag in tags], rtol=1e-5)


def test_without_originals_features_are_not_asked_and_retained_subjects_are(tiny_context: Context, person: str) -> None:
    run_id = tiny.plan_run(tiny_context, person)
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    (attempt,) = tiny.attempts(tiny_context)
    assert attempt.figures["looked"]["features"] is None
    assert sentences(attempt.figures)["features"] == f"The penultimate features cannot be compared: {NO_ORIGINALS}."
    assert attempt.figures["looked"]["exposure"] is not None


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_references_from_before_features_were_kept_are_not_misread(
    tiny_context: Context, person: str, alpha: float
) -> None:
    policy = replace(tiny.POLICY, features_alpha=alpha)
    run_id = tiny.plan_run(tiny_context, person, policy=policy)
    store, bank = bank_of(tiny_context, run_id, policy)
    (row,) = [path for path in store.folder.glob("*/*/0.row") if path.parts[-3] == replace_key(bank, OTHERS)]
    row.write_bytes(row.read_bytes()[:-1])  # one model of the bank has nothing beside it
    evidence_says = judged(tiny_context, run_id, policy)
    assert evidence_says == {
        "features": f"The penultimate features cannot be compared: {OLD_REFERENCES}.",
        "exposure": f"Whether retained subjects became more exposed cannot be told: {OLD_REFERENCES}.",
    }
    (attempt,) = tiny.attempts(tiny_context)
    assert attempt.verdict == ("UNDETERMINED" if alpha else "PASSED")


def test_references_that_looked_at_nobody_whom_the_candidate_was_are_no_mistake(
    tiny_context: Context, person: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a subject has more images than a sample needs, the sample is one subject, who may ask to be erased."""
    monkeypatch.setattr(spec, "SAMPLE", tiny.N_IMAGES)
    policy = replace(tiny.POLICY, staleness_max=0.25)
    plan = tiny.plan_for(tiny_context, person)
    tiny.build(tiny_context, plan)
    (tag,) = plan.others
    (sampled,) = (each for each in tiny.people(tiny_context) if tiny_context.keyring.block_hash(each) == tag)
    run_id = tiny.claim_run(tiny_context, person, policy=policy)
    tiny.file(tiny_context, sampled)
    tiny.workspace(tiny_context, run_id, policy).make_plan()
    assert judged(tiny_context, run_id, policy) == {
        "features": f"The penultimate features cannot be compared: {NOT_SEEN}.",
        "exposure": f"Whether retained subjects became more exposed cannot be told: {NOT_SEEN}.",
    }


def replace_key(bank, statistic: str) -> str:
    return replace(bank.key, statistic=statistic).digest


def judged(context: Context, run_id: str, policy) -> dict[str, str]:
    tiny.try_step(context, run_id, tiny.RETRAIN, policy)
    said = sentences(tiny.attempts(context)[0].figures)
    return {name: said[name] for name in ("features", "exposure")}


def test_a_bank_that_is_discarded_takes_with_it_what_lies_beside_it(tiny_context: Context, run_id: str) -> None:
    from service.banks.build import discard_unnamed

    store, bank = bank_of(tiny_context, run_id)
    assert all((store.folder / replace_key(bank, statistic)).exists() for statistic in BESIDE)
    discard_unnamed(store, [bank.key], tiny_context.settings, run_id=run_id)
    assert not any((store.folder / replace_key(bank, statistic) / "manifest").exists() for statistic in BESIDE)


def test_nothing_of_an_erased_subject_s_features_is_left_after_the_purge(
    tiny_context: Context, run_id: str, person: str
) -> None:
    tag = tiny_context.keyring.block_hash(person)
    plans = (tiny.plan_for(tiny_context, other) for other in tiny.people(tiny_context)[1:])
    tiny.build(tiny_context, next(plan for plan in plans if tag in plan.others))  # another block's references
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    held = sum((store.count_columns([tag]) for store in stores(tiny_context.settings)), Counter())
    assert held[tag, FEATURES] > 0
    assert held[tag, OTHERS] > 0
    seen = RunFolder(tiny_context.settings, run_id).read("step-1")["looks"]
    numbers = np.array(seen["descriptors"])
    tiny.finish(tiny_context, run_id)
    assert not sum((store.count_columns([tag]) for store in stores(tiny_context.settings)), Counter())
    told = [repr(float(value)).encode() for value in numbers.ravel()]
    forms = [each for each in told if len(each) > 10]  # a share may be 0.0 or 1.0, which says nothing
    forms += [row.astype("<f4").tobytes() for row in numbers if np.unique(row).size > 1]
    assert forms
    for path in tiny_context.settings.home.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(form in content for form in forms), path
