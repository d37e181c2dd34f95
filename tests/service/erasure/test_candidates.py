"""Candidates, how they are judged (`judging`) and put into service (`deploying`)."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sqlmodel import select

from audit.evaluation import evaluate
from audit.proof.certificate import verify
from audit.qualification import Bars
from service.banks.build import columns_of, example_ids
from service.banks.store import BankStore
from service.erasure import candidates, completion, judging
from service.erasure.candidates import original_outcome, seed_of, spec_of, unlearn
from service.erasure.deploying import deploy
from service.erasure.judging import judge
from service.erasure.price import rows as price_rows
from service.erasure.references import bank_plan, gather
from service.erasure.workspace import RunFolder
from service.errors import ConflictError
from service.models import deployment, registry, rosters
from service.models.manifest import library_versions
from service.store.engine import session
from service.store.tables import Attempt, Qualification
from service.training import data, jobs, served
from service.training.jobs import run_trial
from tests.service import tiny
from tests.service.qualified import write_qualification
from unlearning.errors import MethodError
from unlearning.recipes import load_recipe


@pytest.fixture
def person(tiny_context):
    return tiny.people(tiny_context)[0]


@pytest.fixture
def run_id(tiny_context, person):
    """A run with its plan and its reference bank."""
    return tiny.plan_run(tiny_context, person)


def unlearned_bank(context, run_id):
    """The one bank in a run's folder."""
    store = BankStore(RunFolder(context.settings, run_id).unlearned())
    (status,) = store.status(now=context.now())
    return store.find(status.key, n_models=tiny.POLICY.n_models)


def test_the_seeds_of_the_steps_follow_from_the_run_s(tiny_context, run_id):
    run = tiny.run_of(tiny_context, run_id)
    seeds = [seed_of(run, step) for step in range(20)]
    assert len(set(seeds)) == 20
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == [seed_of(tiny.run_of(tiny_context, run_id), step) for step in range(20)]


def test_the_seed_of_a_step_stays_what_it_was_and_fits_the_database(tiny_context, run_id):
    """A run may go on under another version of this program, and its certificate's seed makes its weights again."""
    run = tiny.run_of(tiny_context, run_id)
    run.seed = 7
    assert [seed_of(run, step) for step in range(3)] == [1_000_010, 2_000_013, 3_000_016]
    run.seed = 2**31 - 1
    assert [seed_of(run, step) for step in range(3)] == [1_000_002, 2_000_005, 3_000_008]


def test_the_candidate_is_one_trial_of_the_seed_fixed_before(tiny_context, run_id):
    unlearn(tiny.workspace(tiny_context, run_id), tiny.FINETUNE)
    (attempt,) = tiny.attempts(tiny_context)
    assert (attempt.method, attempt.verdict) == ("finetune", None)  # nothing was measured against a bar yet
    assert attempt.seed == seed_of(tiny.run_of(tiny_context, run_id), tiny.FINETUNE)
    folder = RunFolder(tiny_context.settings, run_id)
    candidate, bank = folder.read("step-0"), unlearned_bank(tiny_context, run_id)
    assert candidate["seed"] == attempt.seed
    assert bank.seeds.tolist() == [0, 1, 2, 3]  # other seeds, none of which can be deployed
    assert bank.margins.shape == (4, tiny.N_IMAGES)
    assert list(folder.path.glob("*.safetensors")) == [folder.weights(0)]


def test_unlearning_again_keeps_the_candidate_and_the_bank(tiny_context, run_id):
    folder = RunFolder(tiny_context.settings, run_id)
    unlearn(tiny.workspace(tiny_context, run_id), tiny.FINETUNE)
    before = folder.read("step-0"), folder.weights(0).stat().st_mtime_ns, unlearned_bank(tiny_context, run_id)
    unlearn(tiny.workspace(tiny_context, run_id), tiny.FINETUNE)
    after = folder.read("step-0"), folder.weights(0).stat().st_mtime_ns, unlearned_bank(tiny_context, run_id)
    assert after[:2] == before[:2]
    np.testing.assert_array_equal(after[2].seconds, before[2].seconds)
    assert len(tiny.attempts(tiny_context)) == 1


def test_exact_retraining_needs_no_bank_of_its_own(tiny_context, run_id):
    unlearn(tiny.workspace(tiny_context, run_id), tiny.RETRAIN)
    assert not RunFolder(tiny_context.settings, run_id).unlearned().exists()


def test_a_failed_candidate_gets_a_certificate_that_names_no_request(tiny_context, run_id):
    assert not tiny.try_step(tiny_context, run_id, tiny.FINETUNE)
    (attempt,) = tiny.attempts(tiny_context)
    assert attempt.verdict == "FAILED"
    assert any("of retraining's time; at most 1% is allowed" in reason for reason in attempt.reasons)
    (record,) = tiny.certificates(tiny_context)
    assert (record.id, record.request_id) == (attempt.certificate_id, None)
    result = verify(record.envelope, public_key=tiny_context.keyring.public_key)
    assert result.valid, result.checks
    assert not result.erased
    predicate = result.statement["predicate"]
    assert (predicate["verdict"], predicate["request_id"], predicate["purge"]) == ("FAILED", None, None)
    (request,) = tiny.requests(tiny_context)
    assert predicate["subject_commitments"] == [request.commitment]
    assert request.id not in json.dumps(result.statement)
    assert tiny.run_of(tiny_context, run_id).candidate_digest is None


def test_a_passed_candidate_is_noted_and_certified_only_at_the_end(tiny_context, run_id):
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    (attempt,) = tiny.attempts(tiny_context)
    folder = RunFolder(tiny_context.settings, run_id)
    assert attempt.verdict == "PASSED"
    assert attempt.reasons == []
    assert attempt.candidate_digest == folder.read("step-1")["weights_digest"]
    assert tiny.run_of(tiny_context, run_id).candidate_digest == attempt.candidate_digest
    assert tiny.certificates(tiny_context) == []
    assert {"original", "deployed", "retrained", "retrained_deviation"} == attempt.figures["margin_means"].keys()


def test_an_undetermined_audit_does_not_pass(tiny_context, person):
    policy = replace(tiny.POLICY, exchangeability_alpha=0.05)  # four references cannot carry such a test
    run_id = tiny.plan_run(tiny_context, person, tiny.people(tiny_context)[1], policy=policy)
    assert not tiny.try_step(tiny_context, run_id, tiny.RETRAIN, policy)
    (record,) = tiny.certificates(tiny_context)
    assert record.verdict == "UNDETERMINED"
    result = verify(record.envelope)
    assert result.valid, result.checks
    commitments = [request.commitment for request in tiny.requests(tiny_context)]
    assert result.statement["predicate"]["subject_commitments"] == commitments
    assert len(commitments) == 2


@pytest.fixture
def diverging(tiny_context, tmp_path):
    """A home where fine-tuning multiplies the weights at every step until they are no numbers any more."""
    recipe = data.recipe_of(tiny_context)
    found = {"settings": {"learning_rate": 10.0, "weight_decay": 1.0, "epochs": 40.0}, "record": {"cost_share": 0.5}}
    tuned = tmp_path / "tuned.json"
    tuned.write_text(json.dumps({"tiny": {"recipe_digest": recipe.digest, "methods": {"finetune": found}}}))
    return replace(tiny_context, settings=tiny_context.settings.model_copy(update={"tuned": tuned}))


def test_a_method_that_diverges_leaves_the_rest_of_the_ladder_to_be_tried(diverging, person):
    run_id = tiny.plan_run(diverging, person)
    reason = unlearn(tiny.workspace(diverging, run_id), tiny.FINETUNE)
    assert "finetune diverged" in reason
    (attempt,) = tiny.attempts(diverging)
    assert (attempt.verdict, attempt.reasons) == ("UNDETERMINED", [reason])
    assert attempt.finished_at is not None
    assert tiny.certificates(diverging) == []  # nothing was audited
    before = tiny.attempts(diverging)
    assert unlearn(tiny.workspace(diverging, run_id), tiny.FINETUNE) == reason  # a kill before the step was recorded
    assert tiny.attempts(diverging) == before
    assert tiny.try_step(diverging, run_id, tiny.RETRAIN)
    tiny.finish(diverging, run_id)
    assert [record.verdict for record in tiny.certificates(diverging)] == ["PASSED"]


def test_a_method_one_of_whose_other_seeds_diverges_is_not_judged(tiny_context, run_id, monkeypatch):
    def some_diverge(spec, seed, keep_weights=None):
        if keep_weights is None and seed == 2:
            raise MethodError("finetune diverged.")
        return run_trial(spec, seed, keep_weights)

    monkeypatch.setattr(jobs, "run_trial", some_diverge)
    assert unlearn(tiny.workspace(tiny_context, run_id), tiny.FINETUNE) == "finetune diverged."
    (attempt,) = tiny.attempts(tiny_context)
    assert (attempt.verdict, attempt.candidate_digest) == ("UNDETERMINED", None)
    assert RunFolder(tiny_context.settings, run_id).read("step-0") is not None


def test_a_candidate_that_cannot_be_made_again_for_its_audit_leaves_the_rest_of_the_ladder(
    tiny_context, run_id, monkeypatch
):
    def diverge(spec, seed, keep_weights=None):
        raise MethodError("finetune diverged.")

    assert unlearn(tiny.workspace(tiny_context, run_id), tiny.FINETUNE) is None
    (RunFolder(tiny_context.settings, run_id).path / "step-0.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(served, "run_trial", diverge)
        assert judge(tiny.workspace(tiny_context, run_id), tiny.FINETUNE) is False
    (attempt,) = tiny.attempts(tiny_context)
    assert (attempt.verdict, attempt.reasons) == ("UNDETERMINED", ["finetune diverged."])
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)


def test_a_candidate_that_answers_one_class_only_is_not_judged(tiny_context, person, monkeypatch):
    """Its last layer is zero: all classes are equally probable, and the first is answered."""

    def train_to_no_end(*arguments, **options):
        trained = jobs_train(*arguments, **options)
        with torch.no_grad():
            for parameter in list(trained.model.parameters())[-2:]:
                parameter.zero_()
        return trained

    jobs_train = jobs.train
    run_id = tiny.plan_run(tiny_context, person)
    monkeypatch.setattr(jobs, "train", train_to_no_end)
    assert not tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    (attempt,) = tiny.attempts(tiny_context)
    assert (attempt.verdict, attempt.candidate_digest) == ("UNDETERMINED", None)
    (reason,) = attempt.reasons
    assert "the candidate of retrain to tell its classes apart" in reason
    assert "every audit of it passes, since it says the same of everybody" in reason
    assert "docs/own-data.md" in reason
    assert not tiny.try_step(tiny_context, run_id, tiny.RETRAIN)  # and stays so
    assert tiny.run_of(tiny_context, run_id).candidate_digest is None


def test_the_last_subject_of_a_class_can_be_erased(tiny_context, person):
    """Whatever is trained without them answers the other class for everybody, and rightly so."""
    tiny.make_lopsided(tiny_context, young=person)
    run_id = tiny.plan_run(tiny_context, person)
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)


def test_each_method_of_a_ladder_is_judged_by_other_seeds_of_its_own(tiny_context, person):
    policy = replace(tiny.POLICY, ladder=("finetune", "gradient_ascent", "retrain"))
    run_id = tiny.plan_run(tiny_context, person, policy=policy)
    for step in (0, 1):
        assert unlearn(tiny.workspace(tiny_context, run_id, policy=policy), step) is None
    statuses = BankStore(RunFolder(tiny_context.settings, run_id).unlearned()).status(now=tiny_context.now())
    assert [status.n_models for status in statuses] == [policy.n_models] * 2


@pytest.mark.parametrize("step", [tiny.FINETUNE, tiny.RETRAIN])
def test_judging_again_changes_nothing(tiny_context, clock, run_id, step):
    passed = tiny.try_step(tiny_context, run_id, step)
    before = tiny.attempts(tiny_context), tiny.certificates(tiny_context), tiny.log_entries(tiny_context)
    clock.advance(seconds=1)
    assert judge(tiny.workspace(tiny_context, run_id), step) is passed
    assert (tiny.attempts(tiny_context), tiny.certificates(tiny_context), tiny.log_entries(tiny_context)) == before


def test_policy_audit_and_certificate_stand_in_the_log(tiny_context, run_id):
    tiny.try_step(tiny_context, run_id, tiny.FINETUNE)
    tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    entries = [(leaf.kind, json.loads(leaf.entry)) for leaf in tiny.log_entries(tiny_context)]
    assert [kind for kind, _ in entries] == ["policy", "audit", "certificate", "audit"]
    audits = [fields for kind, fields in entries if kind == "audit"]
    assert [fields["verdict"] for fields in audits] == ["FAILED", "PASSED"]
    assert [fields["weights"] for fields in audits] == [
        RunFolder(tiny_context.settings, run_id).read(f"step-{step}")["weights_digest"] for step in (0, 1)
    ]


def test_what_is_missing_is_made_again_before_it_is_judged(tiny_context, person):
    run_id = tiny.claim_run(tiny_context, person)
    tiny.workspace(tiny_context, run_id).make_plan()
    unlearn(tiny.workspace(tiny_context, run_id), tiny.RETRAIN)
    folder = RunFolder(tiny_context.settings, run_id)
    made = folder.read("step-1")
    (folder.path / "step-1.json").unlink()
    assert judge(tiny.workspace(tiny_context, run_id), tiny.RETRAIN)
    again = folder.read("step-1")
    assert (again["seed"], again["weights_digest"]) == (made["seed"], made["weights_digest"])
    (status,) = BankStore(tiny_context.settings.banks_folder).status(now=tiny_context.now())
    assert status.n_models == tiny.POLICY.n_models


def test_the_model_before_is_scored_like_a_trial(tiny_context, run_id):
    work = tiny.workspace(tiny_context, run_id)
    outcome = original_outcome(work, spec_of(work, "retrain"))
    assert outcome.margins.shape == (tiny.N_IMAGES,)
    assert outcome.weights_digest == tiny.run_of(tiny_context, run_id).base_digest


def test_the_report_names_the_run_and_no_person(tiny_context, run_id):
    tiny.try_step(tiny_context, run_id, tiny.FINETUNE)
    files = list((tiny_context.settings.reports_folder / run_id).iterdir())
    assert {path.name for path in files} >= {"step-0.html", "step-0.json"}
    everybody = tiny.people(tiny_context) + tiny.people(tiny_context, "test")
    for path in files:
        text = path.read_text()
        assert not any(person in text for person in everybody), path
    assert run_id in (tiny_context.settings.reports_folder / run_id / "step-0.html").read_text()
    report = json.loads((tiny_context.settings.reports_folder / run_id / "step-0.json").read_text())
    (attempt,), plan = tiny.attempts(tiny_context), tiny.workspace(tiny_context, run_id).plan
    assert report["title"] == f"Audit of run {run_id[:8]}, step 1"
    assert report["subject"] == f"finetune on {tiny.N_IMAGES} images of model line default"
    assert (
        report["provenance"].items()
        >= {
            "Run": run_id,
            "Seed of the method": str(attempt.seed),
            "Recipe": f"tiny ({plan.recipe_digest[:16]}…)",
            "Data manifest": plan.manifest_digest,
            "Policy logged": f"{tiny.POLICY.digest} before the run",
            **library_versions(),
        }.items()
    )
    share = {"One run of the method, as a share of retraining": f"{attempt.figures['cost_share']:.1%}"}
    assert report["cost"] == share | price_rows(attempt.figures["price"])
    assert "Caused by the request, in trainings" in report["cost"]


def test_the_report_draws_the_strongest_attack(tiny_context, run_id):
    tiny.try_step(tiny_context, run_id, tiny.FINETUNE)
    report = json.loads((tiny_context.settings.reports_folder / run_id / "step-0.json").read_text())
    attacks = [report["evaluation"][name]["auc"]["value"] for name in ("attack", "quantile_attack")]
    assert report["roc"]["auc"] == max(attacks, key=lambda area: abs(area - 0.5))
    assert len(report["roc"]["true_positive_rate"]) == 201


def test_photographs_are_shown_only_where_the_operator_allows_it_and_until_the_purge(tiny_context, run_id):
    folder, reports = tiny_context.settings.runs_folder / run_id, tiny_context.settings.reports_folder
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    assert not list(folder.glob("*.html"))
    allowed = tiny_context.settings.model_copy(update={"report_photographs": True})
    again = replace(tiny_context, settings=allowed)
    with session(again.engine) as s:
        (attempt,) = s.exec(select(Attempt)).all()
        attempt.verdict = None
        s.add(attempt)
        s.commit()
    assert tiny.try_step(again, run_id, tiny.RETRAIN)
    (page,) = folder.glob("*.html")
    assert page.read_text().count("data:image/png") == len(tiny.workspace(again, run_id).plan.forget)
    assert not any("data:image" in path.read_text() for path in reports.rglob("*.html"))
    tiny.deploy(again, run_id)
    completion.purge(tiny.workspace(again, run_id))
    assert not page.exists()


def test_the_certified_weights_go_into_service_for_good(tiny_context, run_id):
    base = deployment.pointer(tiny_context).committed_digest
    tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    for _ in range(2):  # a kill after the swap repeats it
        deploy(tiny.workspace(tiny_context, run_id))
        run, pointer = tiny.run_of(tiny_context, run_id), deployment.pointer(tiny_context)
        assert (run.generation, pointer.committed_generation) == (2, 2)
        assert pointer.committed_digest == run.candidate_digest
        assert RunFolder(tiny_context.settings, run_id).read("barrier")["generation"] == 2
    manifest = registry.load_checked(tiny_context, run.candidate_digest).manifest
    assert manifest.lineage == {"method": "retrain", "parent": base, "run_id": run_id}
    assert manifest.classes == ("old", "young")
    with pytest.raises(ConflictError, match="remember a person"):
        deployment.stage(tiny_context, base)


def test_other_weights_than_the_audited_are_not_deployed(tiny_context, run_id):
    base = deployment.pointer(tiny_context).committed_digest
    unlearn(tiny.workspace(tiny_context, run_id), tiny.FINETUNE)
    tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    folder = RunFolder(tiny_context.settings, run_id)
    folder.weights(tiny.RETRAIN).write_bytes(folder.weights(tiny.FINETUNE).read_bytes())
    with pytest.raises(ValueError, match="Expected the audited weights"):
        deploy(tiny.workspace(tiny_context, run_id))
    assert [each.name for each in tiny_context.settings.models_folder.glob("*.safetensors")] == [f"{base}.safetensors"]
    assert deployment.pointer(tiny_context).committed_digest == base
    assert tiny.run_of(tiny_context, run_id).generation is None


def test_a_bank_begun_for_more_models_than_the_policy_asks_for_judges_with_those_it_has(tiny_context, person):
    plan, store = tiny.plan_for(tiny_context, person), BankStore(tiny_context.settings.banks_folder)
    store.begin(
        plan.key, example_ids=plan.example_ids, subject_tags=plan.tags, n_wanted=2 * tiny.POLICY.n_models,
        now=tiny_context.now(), learned=plan.learned, tested=plan.tested,
    )  # fmt: skip
    tiny.build(tiny_context, plan, tiny.POLICY.n_models + 1)
    run_id = tiny.plan_run(tiny_context, person)
    assert tiny.workspace(tiny_context, run_id).plan.bank["key"] == vars(plan.key)
    assert not tiny.try_step(tiny_context, run_id, tiny.FINETUNE)
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    (status,) = store.status(now=tiny_context.now())
    assert (status.n_models, status.n_wanted) == (tiny.POLICY.n_models + 1, 2 * tiny.POLICY.n_models)


def test_an_exact_bank_that_is_gone_is_built_again_before_it_judges(tiny_context, person, run_id):
    unlearn(tiny.workspace(tiny_context, run_id), tiny.RETRAIN)
    before = RunFolder(tiny_context.settings, run_id).read("step-1")
    work, store = tiny.workspace(tiny_context, run_id), BankStore(tiny_context.settings.banks_folder)
    planned = work.plan
    store.discard(bank_plan(work).key)
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    assert tiny.workspace(tiny_context, run_id).plan == planned
    assert RunFolder(tiny_context.settings, run_id).read("step-1") == before


@pytest.fixture
def evaluated(monkeypatch):
    """What the audit was asked: evidence and options."""
    asked = []

    def tell(evidence, policy, **options):
        asked.append((evidence, options))
        return evaluate(evidence, policy, **options)

    monkeypatch.setattr(judging, "evaluate", tell)
    return asked


@pytest.mark.parametrize("step", [tiny.FINETUNE, tiny.RETRAIN + 1])
def test_the_audit_is_given_what_was_measured(tiny_context, run_id, evaluated, step):
    settings, work = tiny_context.settings, tiny.workspace(tiny_context, run_id)
    unlearn(tiny.workspace(tiny_context, run_id), step)
    folder, run = RunFolder(settings, run_id), tiny.run_of(tiny_context, run_id)
    folder.write(f"step-{step}", {**folder.read(f"step-{step}"), "retain_accuracy": 0.25, "test_accuracy": 0.125})
    judge(tiny.workspace(tiny_context, run_id), step)
    ((evidence, options),) = evaluated
    bank = BankStore(settings.banks_folder).find(bank_plan(work).key, n_models=tiny.POLICY.n_models)
    ids = example_ids(work.faces, work.plan.forget)
    before = original_outcome(work, spec_of(work, "retrain"))
    same = np.testing.assert_array_equal
    same(evidence.retrained, columns_of(bank, ids))
    served = folder.read(f"step-{step}")["served"]
    same(evidence.deployed, served["views"][0])
    same(evidence.views.deployed, served["views"])
    same(evidence.original, before.margins)
    assert (evidence.retain_accuracy_deployed, evidence.test_accuracy_deployed) == (0.25, 0.125)
    assert evidence.retain_accuracy_original == before.retain_accuracy
    assert evidence.test_accuracy_original == before.test_accuracy
    same(evidence.retain_accuracy_retrained, bank.retain_accuracy)
    same(evidence.test_accuracy_retrained, bank.test_accuracy)
    assert options == {"rung": 0 if step == tiny.FINETUNE else 1, "seed": run.seed}
    (attempt,) = tiny.attempts(tiny_context)
    assert attempt.figures["margin_means"]["original"] == pytest.approx(before.margins.mean())
    assert attempt.figures["margin_means"]["deployed"] == pytest.approx(np.mean(evidence.deployed))
    assert attempt.figures["margin_means"]["retrained"] == pytest.approx(np.mean(evidence.retrained))
    deviation = np.std(np.mean(evidence.retrained, axis=1), ddof=1)
    assert attempt.figures["margin_means"]["retrained_deviation"] == pytest.approx(deviation)
    if step == tiny.FINETUNE:
        unlearned = unlearned_bank(tiny_context, run_id)
        same(evidence.unlearned, columns_of(unlearned, ids))
        same(evidence.retain_accuracy_unlearned, unlearned.retain_accuracy)
        same(evidence.test_accuracy_unlearned, unlearned.test_accuracy)
        assert evidence.cost_share == np.median(unlearned.seconds) / np.median(bank.seconds)
        assert not evidence.exact
    else:
        assert (evidence.unlearned, evidence.cost_share, evidence.exact) == (None, None, True)


def test_a_version_says_what_its_candidate_was_made_with_and_remembers_whom_its_parent_learned_from(
    tiny_context, person, run_id
):
    """Weights that were only fine-tuned still know people who are in no training any more, but not the erased one."""
    base, elsewhere = tiny.run_of(tiny_context, run_id).base_digest, "f" * 64
    with session(tiny_context.engine) as s:
        parents = rosters.read(s, base)
        rosters.write(s, base, {elsewhere: 5})
        s.commit()
    tiny.try_step(tiny_context, run_id, tiny.FINETUNE)
    with session(tiny_context.engine) as s:
        (attempt,) = s.exec(select(Attempt)).all()
        made_with = {**attempt.figures["made_with"], "versions": {"torch": "of another day"}}
        attempt.verdict, attempt.figures = "PASSED", {**attempt.figures, "made_with": made_with}
        s.add(attempt)
        s.commit()
        s.refresh(attempt)
    deploy(tiny.workspace(tiny_context, run_id))
    digest = deployment.pointer(tiny_context).committed_digest
    with session(tiny_context.engine) as s:
        remembered = rosters.read(s, digest)
    gone = tiny_context.keyring.subject_hash(person)
    assert gone in parents
    assert remembered.keys() == parents.keys() - {gone} | {elsewhere}
    manifest = registry.load_checked(tiny_context, digest).manifest
    assert manifest.lineage == {"method": "finetune", "parent": base, "run_id": run_id}
    assert (manifest.seed, manifest.versions) == (attempt.seed, {"torch": "of another day"})


def test_a_version_retrained_from_nothing_remembers_only_whom_it_learned_from(tiny_context, person, run_id):
    base = tiny.run_of(tiny_context, run_id).base_digest
    tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    deploy(tiny.workspace(tiny_context, run_id))
    with session(tiny_context.engine) as s:
        parents = rosters.read(s, base)
        remembered = rosters.read(s, deployment.pointer(tiny_context).committed_digest)
    assert remembered == {each: n for each, n in parents.items() if each != tiny_context.keyring.subject_hash(person)}


def test_where_nobody_knows_whom_the_parent_learned_from_nobody_knows_it_of_the_version(tiny_context, run_id):
    """Rather than a list that lacks people: the next erasure would leave weights that remember them."""
    base = tiny.run_of(tiny_context, run_id).base_digest
    tiny.try_step(tiny_context, run_id, tiny.FINETUNE)
    with session(tiny_context.engine) as s:
        rosters.forget(s, [base])
        (attempt,) = s.exec(select(Attempt)).all()
        attempt.verdict = "PASSED"
        s.add(attempt)
        s.commit()
    deploy(tiny.workspace(tiny_context, run_id))
    with session(tiny_context.engine) as s:
        assert rosters.read(s, deployment.pointer(tiny_context).committed_digest) == {}


def test_the_price_is_of_everything_that_the_request_caused(tiny_context, person, run_id):
    """References that were there cost it nothing; those that were not, its runs and each candidate are counted."""
    for step in (tiny.FINETUNE, tiny.RETRAIN):
        tiny.try_step(tiny_context, run_id, step)
    first, second = (attempt.figures["price"] for attempt in tiny.attempts(tiny_context))
    bank = BankStore(tiny_context.settings.banks_folder).find(
        bank_plan(tiny.workspace(tiny_context, run_id)).key, n_models=tiny.POLICY.n_models
    )
    unit = float(np.median(bank.seconds))
    folder = RunFolder(tiny_context.settings, run_id)
    made = [folder.read(f"step-{step}")["seconds"] for step in (tiny.FINETUNE, tiny.RETRAIN)]
    assert first["training_seconds"] == unit
    assert first["trainings"]["candidates"] == pytest.approx(made[0] / unit)
    assert second["trainings"]["candidates"] == pytest.approx(sum(made) / unit)
    runs = unlearned_bank(tiny_context, run_id).seconds.sum()
    assert second["trainings"]["runs of methods"] == pytest.approx(runs / unit)
    assert second["total"] == pytest.approx(sum(second["trainings"].values()))
    assert (second["ahead"], second["erasures_before"]) == (pytest.approx(bank.seconds.sum() / unit), 0)
    assert "references" not in second["trainings"]  # the fixture built the bank before the run was planned


def test_references_trained_for_a_request_are_in_its_price(tiny_context, person):
    run_id = tiny.claim_run(tiny_context, person)
    tiny.workspace(tiny_context, run_id).make_plan()
    bank = gather(tiny.workspace(tiny_context, run_id))  # as after a kill: what it asked for first counts
    tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    (attempt,) = tiny.attempts(tiny_context)
    assert len(bank.seconds) == tiny.POLICY.n_models
    spent = bank.seconds.sum() / np.median(bank.seconds)
    assert attempt.figures["price"]["trainings"]["references"] == pytest.approx(spent)
    assert attempt.figures["price"]["ahead"] == pytest.approx(0.0, abs=1e-9)


GATED = replace(tiny.POLICY, gate_alpha=0.05, qualification=True, cost_share_max=1.0)
"""The tiny policy as `standard` is: a qualified method and the gate, no bank of runs."""


def qualified(context, **changes):
    n = len(tiny.people(context))
    recipe = load_recipe(context.settings.recipe)
    return write_qualification(context, method="finetune", recipe=recipe, n_subjects=n, bars=Bars.of(GATED), **changes)


def test_a_method_that_is_not_qualified_is_no_rung_and_nothing_is_trained_for_it(tiny_context, person):
    run_id = tiny.plan_run(tiny_context, person, policy=GATED)
    why = unlearn(tiny.workspace(tiny_context, run_id, GATED), tiny.FINETUNE)
    assert why == "finetune was never qualified; run `expunge qualify finetune`."
    (attempt,) = tiny.attempts(tiny_context)
    assert (attempt.verdict, attempt.reasons, attempt.candidate_digest) == ("UNDETERMINED", [why], None)
    assert RunFolder(tiny_context.settings, run_id).read("step-0") is None
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN, GATED)  # which needs none


def test_a_qualified_method_costs_one_run_and_the_certificate_names_the_record(tiny_context, person):
    qualified(tiny_context)
    run_id = tiny.plan_run(tiny_context, person, policy=GATED)
    tiny.try_step(tiny_context, run_id, tiny.FINETUNE, GATED)
    (attempt,) = tiny.attempts(tiny_context)
    checks = {check["name"]: check for check in attempt.figures["checks"]}
    assert checks["qualification"]["passed"] is True
    index = re.search(r"entry (\d+) of the log", checks["qualification"]["sentence"])[1]
    assert tiny.log_entries(tiny_context)[int(index)].kind == "qualification"
    assert checks["gate"]["passed"] is not None
    assert (attempt.figures["n_unlearned"], attempt.figures["score"]) == (0, None)
    made = RunFolder(tiny_context.settings, run_id).read("step-0")["seconds"]
    price = attempt.figures["price"]
    assert price["total"] == pytest.approx(made / price["training_seconds"])  # no bank of runs
    assert attempt.figures["cost_share"] == pytest.approx(price["total"])


def test_a_qualification_that_expires_between_the_run_and_its_audit_leads_to_the_next_rung(
    tiny_context, person, monkeypatch
):
    qualified(tiny_context)
    run_id = tiny.plan_run(tiny_context, person, policy=GATED)
    assert unlearn(tiny.workspace(tiny_context, run_id, GATED), tiny.FINETUNE) is None
    monkeypatch.setattr(candidates, "unlearn", lambda work, step: None)  # it is made already
    tiny_context.now.advance(days=200)
    assert not judge(tiny.workspace(tiny_context, run_id, GATED), tiny.FINETUNE)
    (attempt,) = tiny.attempts(tiny_context)
    assert attempt.verdict in ("UNDETERMINED", "FAILED")
    assert any("no valid qualification" in reason for reason in attempt.reasons)


def test_an_altered_record_is_no_qualification(tiny_context, person):
    id_ = qualified(tiny_context)
    with session(tiny_context.engine) as s:
        row = s.get(Qualification, id_)
        row.bars = {**row.bars, "cost_share_max": 0.5}
        s.add(row)
        s.commit()
    run_id = tiny.plan_run(tiny_context, person, policy=GATED)
    assert "altered after it was signed" in unlearn(tiny.workspace(tiny_context, run_id, GATED), tiny.FINETUNE)
