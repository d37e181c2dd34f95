"""The steps without DBOS: outside of a workflow they are plain calls. With DBOS the workflow is in tests/journey."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import signal
import sys
from dataclasses import replace

import pytest
from dbos import error as dbos_error
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlmodel import select

from audit.proof.certificate import verify
from service.context import LINE
from service.erasure import candidates, reruns, workspace
from service.erasure.completion import complete, purge
from service.erasure.pipeline import Pipeline, StepError, StoppedError, place_of, reason_of
from service.erasure.workspace import RunFolder
from service.models import deployment, registry
from service.models.shadowing import Figures, to_json
from service.requests.runs import advance
from service.store.engine import reading, session
from service.store.tables import OpenLine, RequestEvent, ShadowComparison, ShadowPart
from service.telemetry.tracing import Traces
from service.training.jobs import run_trial
from tests.service import tiny
from tests.service.versions import add_version
from unlearning.errors import MethodError
from unlearning.registry import METHODS

SECRET = "p0000007 was here"


def fail(depth: int = 2) -> None:
    if depth:
        fail(depth - 1)
    raise ValueError(SECRET)


@pytest.fixture
def raised() -> ValueError:
    with pytest.raises(ValueError, match=SECRET) as caught:
        fail()
    return caught.value


@pytest.fixture
def pipeline(only_pipeline, tiny_context):
    only_pipeline.context = tiny_context
    return only_pipeline


def test_the_place_of_an_error_is_its_kind_and_innermost_lines(raised):
    line = raised.__traceback__.tb_next.tb_lineno
    assert place_of(raised).startswith("ValueError in test_pipeline.py:")
    assert place_of(raised).count("test_pipeline.py:") == 3
    assert str(line) in place_of(raised)
    assert SECRET not in place_of(raised)


def test_the_place_of_a_step_tried_too_often_is_that_of_its_last_error(raised):
    tried = dbos_error.DBOSMaxStepRetriesExceeded("audit", 3, [OSError(SECRET), raised])
    assert place_of(tried) == place_of(raised)


def test_a_steps_error_says_where_and_nothing_else(pipeline, tiny_context):
    """DBOS pickles errors into its tables."""
    run_id = tiny.claim_run(tiny_context, tiny.people(tiny_context)[0])
    tiny.images_of(tiny_context, tiny.people(tiny_context)[0])[0].write_text(SECRET)
    with pytest.raises(StepError) as caught:
        pipeline.plan(run_id)
    assert SECRET.encode() not in pickle.dumps(caught.value)
    assert "FacesError in " in str(caught.value)
    assert place_of(dbos_error.DBOSMaxStepRetriesExceeded("plan", 3, [caught.value])) == str(caught.value)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoppedError("Expected room, found none."), "Expected room, found none."),
        (dbos_error.DBOSMaxStepRetriesExceeded("audit", 3, [OSError(SECRET), StoppedError("So.")]), "So."),
        (StepError("OSError in here"), "The run stopped on OSError in here."),
        (OSError(SECRET), "The run stopped on OSError in an unknown place."),
        (
            dbos_error.DBOSMaxStepRetriesExceeded("audit", 3, []),
            "The run stopped on DBOSMaxStepRetriesExceeded in an unknown place.",
        ),
    ],
)
def test_a_run_stops_for_a_reason_that_people_can_read(error, reason):
    assert reason_of(error) == reason


def test_a_run_is_not_judged_by_another_policy_than_the_one_logged_before_it(pipeline, tiny_context, monkeypatch):
    """The worker was started anew with another policy in the middle of the run."""
    run_id = tiny.claim_run(tiny_context, tiny.people(tiny_context)[0])
    pipeline.plan(run_id)
    monkeypatch.setattr(pipeline, "policy", replace(tiny.POLICY, retrain_attempts=1))
    for step in (pipeline.plan, pipeline.gather_references):
        with pytest.raises(StoppedError, match="policy that was logged before this run"):
            step(run_id)
    for step in (pipeline.unlearn, pipeline.audit):
        with pytest.raises(StoppedError, match="policy that was logged before this run"):
            step(run_id, tiny.RETRAIN)
    assert tiny.attempts(tiny_context) == []


@pytest.mark.parametrize("what", ["recipe", "training code", "views"])
def test_a_run_is_not_carried_on_by_another_recipe_or_code_than_it_was_planned_with(
    pipeline, tiny_context, monkeypatch, what
):
    run_id = tiny.plan_run(tiny_context, tiny.people(tiny_context)[0])
    if what == "recipe":
        recipe = tiny_context.settings.home / "recipe.json"
        recipe.write_text(json.dumps({**tiny.RECIPE, "epochs": 4}))
    elif what == "views":  # planned before banks held margins of views, or with other views
        folder = RunFolder(tiny_context.settings, run_id)
        plan = folder.read("plan")
        folder.write("plan", plan | {"bank": plan["bank"] | {"key": plan["bank"]["key"] | {"statistic": "margin"}}})
    else:
        monkeypatch.setattr(workspace, "training_code_version", lambda: "another")
    told = "training code" if what == "views" else what
    with pytest.raises(StoppedError, match=f"the {told} this run was planned with"):
        pipeline.unlearn(run_id, tiny.RETRAIN)
    assert tiny.certificates(tiny_context) == []


def test_no_run_is_planned_by_another_recipe_than_that_of_the_model_in_service(pipeline, tiny_context):
    run_id = tiny.claim_run(tiny_context, tiny.people(tiny_context)[0])
    (tiny_context.settings.home / "recipe.json").write_text(json.dumps({**tiny.RECIPE, "epochs": 4}))
    assert "recipe the model in service was trained with" in pipeline.plan(run_id)


def test_an_error_that_was_never_raised_has_no_place():
    assert place_of(ValueError(SECRET)) == "ValueError in an unknown place"


def test_every_step_may_be_repeated_and_the_end_is_the_same(pipeline, tiny_context, clock):
    """As after a kill between a step's end and DBOS's record of it."""
    person, waiting = tiny.people(tiny_context)[:2]
    run_id = tiny.claim_run(tiny_context, person)
    clock.advance(seconds=1)
    tiny.file(tiny_context, waiting)
    assert [pipeline.plan(run_id) for _ in range(2)] == [True, True]
    for _ in range(2):
        pipeline.gather_references(run_id)
    for step, passes in ((tiny.FINETUNE, False), (tiny.RETRAIN, True)):
        for _ in range(2):
            pipeline.unlearn(run_id, step)
        assert [pipeline.audit(run_id, step) for _ in range(2)] == [passes, passes]
    for step in (pipeline.deploy, pipeline.purge, pipeline.complete):
        step(run_id)
        step(run_id)
    first, second = tiny.requests(tiny_context)
    assert moves_of(tiny_context, first) == [
        "queued", "unlearning", "auditing", "unlearning", "auditing", "deploying", "purging", "completed",
    ]  # fmt: skip
    assert (first.state, second.state) == ("completed", "queued")
    assert [record.verdict for record in tiny.certificates(tiny_context)] == ["FAILED", "PASSED"]
    assert [version.state for version in registry.versions(tiny_context)] == ["destroyed", "active"]
    assert list(tiny_context.settings.runs_folder.iterdir()) == []


def test_a_step_whose_method_makes_nothing_is_not_audited_and_the_next_one_is_tried(
    pipeline, tiny_context, monkeypatch
):
    run_id = tiny.plan_run(tiny_context, tiny.people(tiny_context)[0])

    def diverge(*arguments, **options):
        raise MethodError("finetune diverged.")

    with monkeypatch.context() as patched:
        patched.setattr(candidates, "build_bank", diverge)
        assert not pipeline.try_step(run_id, tiny.FINETUNE)
    assert tiny.run_of(tiny_context, run_id).stage == "unlearning"
    assert pipeline.try_step(run_id, tiny.RETRAIN)
    assert [attempt.verdict for attempt in tiny.attempts(tiny_context)] == ["UNDETERMINED", "PASSED"]


def test_lines_and_span_of_a_step_name_its_run_and_every_request(pipeline, tiny_context, monkeypatch, log_stream):
    settings = tiny_context.settings.model_copy(update={"otlp_endpoint": "http://127.0.0.1:9"})
    traces = Traces.open(settings, "worker", exporter=(exporter := InMemorySpanExporter()))
    monkeypatch.setattr(pipeline, "traces", traces)
    run_id = tiny.claim_run(tiny_context, "nobody-we-know", "nobody-else")
    erasure_ids = [request.id for request in tiny.requests(tiny_context)]
    pipeline.plan(run_id)
    traces.close()
    (begun,) = [line for line in map(json.loads, log_stream.getvalue().splitlines()) if line["event"] == "stage.begun"]
    assert begun.items() >= {"run_id": run_id, "erasure_ids": erasure_ids, "stage": "plan"}.items()
    (span,) = exporter.get_finished_spans()
    assert span.name == "plan"
    assert span.attributes == {"expunge.run_id": run_id, "expunge.erasure_ids": tuple(erasure_ids)}


def test_a_run_without_anything_to_unlearn_says_so(pipeline, tiny_context):
    assert pipeline.plan(tiny.claim_run(tiny_context, "nobody-we-know")) is False


def test_a_run_that_cannot_make_a_model_says_why(pipeline, tiny_context):
    assert "Too few" in pipeline.plan(tiny.claim_run(tiny_context, *tiny.people(tiny_context)))


def test_asking_for_help_leaves_no_candidate_and_frees_the_line(pipeline, tiny_context):
    person = tiny.people(tiny_context)[0]
    run_id = tiny.plan_run(tiny_context, person)
    tiny.try_step(tiny_context, run_id, tiny.FINETUNE)
    never_deployed = add_version(tiny_context, 1)
    assert pipeline.ask_for_help(run_id, "No step of the ladder passed the audit.") == "needs_attention"
    assert not (tiny_context.settings.runs_folder / run_id).exists()
    of_another_run = add_version(tiny_context, 2)
    assert pipeline.ask_for_help(run_id, "No step of the ladder passed the audit.") == "needs_attention"
    assert registry.get(tiny_context, of_another_run).destroyed_at is None
    (request,) = tiny.requests(tiny_context)
    assert (request.state, request.user_id) == ("needs_attention", person)
    assert registry.get(tiny_context, never_deployed).state == "destroyed"
    assert deployment.pointer(tiny_context).committed_generation == 1
    assert list(tiny_context.settings.runs_folder.iterdir()) == []
    with reading(tiny_context.engine) as s:
        assert s.get(OpenLine, LINE) is None


def test_help_that_is_asked_for_after_the_end_undoes_nothing(pipeline, tiny_context):
    """The working files could not be removed, say: the request stays completed, and they are removed now."""
    run_id = tiny.deploy_run(tiny_context, tiny.people(tiny_context)[0])
    purge(tiny.workspace(tiny_context, run_id))
    complete(tiny.workspace(tiny_context, run_id))
    RunFolder(tiny_context.settings, run_id).write("left", {})
    pipeline.ask_for_help(run_id, "The run stopped on OSError.")
    assert tiny.requests(tiny_context)[0].state == "completed"
    assert tiny.run_of(tiny_context, run_id).stage == "completed"
    assert not (tiny_context.settings.runs_folder / run_id).exists()


def test_a_fail_point_kills_once_and_only_where_it_was_asked_for(pipeline, tiny_context, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda *call: killed.append(call))
    settings = tiny_context.settings.model_copy(update={"fail_at": "unlearning.start"})
    pipeline.context = replace(tiny_context, settings=settings)
    run_id = tiny.claim_run(tiny_context, "nobody-we-know")
    pipeline.context.reached("auditing.start")
    assert killed == []
    for _ in range(2):
        pipeline.plan(run_id)
    assert killed == [(os.getpid(), signal.SIGKILL)]


@pytest.fixture
def erase(pipeline):
    """The workflow's own lines, whose steps are plain calls here."""
    return lambda run_id: inspect.unwrap(Pipeline.erase)(pipeline, run_id)


def moves_of(context, request):
    """States a request was moved to, in order."""
    with reading(context.engine) as s:
        moved = select(RequestEvent.to_state).where(RequestEvent.request_id == request.id).order_by(RequestEvent.id)
        return list(s.exec(moved))


def made_twice(pipeline, monkeypatch, *, seeds_apart):
    """Every candidate is made again, here instead of in a process of its own, with its seed or another."""
    context = pipeline.context
    pipeline.context = replace(context, settings=context.settings.model_copy(update={"rerun_share": 1.0}))
    monkeypatch.setattr(
        reruns, "run_apart", lambda spec, seed, _settings, weights: run_trial(spec, seed + seeds_apart, weights)
    )


def test_a_run_goes_its_whole_way(erase, pipeline, tiny_context, monkeypatch):
    """Down the ladder to the step that passes, made again before it serves, and then to the end."""
    made_twice(pipeline, monkeypatch, seeds_apart=0)
    run_id = tiny.claim_run(pipeline.context, tiny.people(tiny_context)[0])
    assert erase(run_id) == "completed"
    (request,) = tiny.requests(tiny_context)
    assert moves_of(tiny_context, request) == [
        "queued", "unlearning", "auditing", "unlearning", "auditing", "deploying", "purging", "completed",
    ]  # fmt: skip
    assert [attempt.verdict for attempt in tiny.attempts(tiny_context)] == ["FAILED", "PASSED"]
    assert [record.verdict for record in tiny.certificates(tiny_context)] == ["FAILED", "PASSED"]
    predicate = verify(tiny.certificates(tiny_context)[-1].envelope).statement["predicate"]
    served = deployment.pointer(tiny_context)
    assert served.committed_digest == tiny.run_of(tiny_context, run_id).candidate_digest
    assert predicate["generation"] == served.committed_generation == 2
    assert predicate["rerun"]["weights_digest"] == served.committed_digest


def shadowed(context, run_id, images, changed):
    """What serving processes counted of the run's candidate before the worker was killed; nobody serves any more."""
    answered = Figures(images, changed, 0, 0.0, (images, 0, 0, 0, 0, 0))
    with session(context.engine) as s:
        s.add(ShadowComparison(run_id=run_id, digest="", share=0.1, began_at=context.now()))
        s.add(ShadowPart(run_id=run_id, boot_id="a", generation=2, counts=to_json({0: answered})))
        s.commit()


def test_a_candidate_that_changes_too_many_live_predictions_waits_for_a_human(
    erase, pipeline, tiny_context, monkeypatch
):
    monkeypatch.setattr(pipeline, "policy", replace(tiny.POLICY, shadow_changed_max=0.05))
    base = deployment.pointer(tiny_context).committed_digest
    run_id = tiny.claim_run(tiny_context, tiny.people(tiny_context)[0], policy=pipeline.policy)
    shadowed(tiny_context, run_id, 200, 30)
    assert erase(run_id) == "needs_attention"
    (request,) = tiny.requests(tiny_context)
    assert "at most 5.0% of live predictions" in request.attention_reason
    assert "15.0% would have another label" in request.attention_reason
    pointer = deployment.pointer(tiny_context)
    assert (pointer.committed_digest, pointer.staging_generation) == (base, None)
    assert [path.stem for path in tiny_context.settings.models_folder.glob("*.safetensors")] == [base]
    assert tiny.images_of(tiny_context, tiny.people(tiny_context)[0])[0].exists()  # nothing was destroyed


def test_figures_of_live_predictions_are_in_the_certificate_without_classes(erase, pipeline, tiny_context, monkeypatch):
    monkeypatch.setattr(pipeline, "policy", replace(tiny.POLICY, shadow_changed_max=0.05))
    run_id = tiny.claim_run(tiny_context, tiny.people(tiny_context)[0], policy=pipeline.policy)
    shadowed(tiny_context, run_id, 200, 10)
    assert erase(run_id) == "completed"
    predicate = verify(tiny.certificates(tiny_context)[-1].envelope).statement["predicate"]
    assert predicate["figures"]["shadow"] == {
        "images": 200, "share": 0.1, "labels_changed": 10, "failed": 0, "confidence_changed": 0,
        "confidence_changed_above": 0.05,
    }  # fmt: skip


def test_a_run_that_no_model_learned_from_only_destroys(erase, tiny_context):
    person = tiny.people(tiny_context, "test")[0]
    run_id = tiny.claim_run(tiny_context, person)
    assert erase(run_id) == "completed"
    for path in tiny_context.settings.home.glob("expunge.db*"):
        assert person.encode() not in path.read_bytes(), path
    (request,) = tiny.requests(tiny_context)
    assert moves_of(tiny_context, request) == ["queued", "unlearning", "purging", "completed"]
    assert tiny.attempts(tiny_context) == []
    assert deployment.pointer(tiny_context).committed_generation == 1
    assert [record.verdict for record in tiny.certificates(tiny_context)] == ["NOT_REQUIRED"]


def needs_help(context, run_id, reason):
    """The run ended before it deployed or destroyed anything; a human is told why."""
    (request,) = tiny.requests(context)
    assert request.state == "needs_attention"
    assert reason in request.attention_reason
    assert tiny.run_of(context, run_id).purge is None
    assert deployment.pointer(context).committed_generation == 1
    assert all(path.exists() for path in tiny.images_of(context, request.user_id))
    return True


def test_a_run_none_of_whose_steps_passes_destroys_nothing(erase, pipeline, tiny_context, monkeypatch):
    policy = replace(tiny.POLICY, ladder=("retrain",), retrain_attempts=1, exchangeability_alpha=0.05)
    monkeypatch.setattr(pipeline, "policy", policy)
    run_id = tiny.claim_run(tiny_context, tiny.people(tiny_context)[0], policy=policy)
    assert erase(run_id) == "needs_attention"
    assert needs_help(tiny_context, run_id, "No step of the ladder passed the audit.")
    assert [record.verdict for record in tiny.certificates(tiny_context)] == ["UNDETERMINED"]


def test_a_run_that_cannot_be_planned_tries_nothing(erase, tiny_context, monkeypatch):
    run_id = tiny.claim_run(tiny_context, tiny.people(tiny_context)[0])
    (tiny_context.settings.home / "recipe.json").write_text(json.dumps({**tiny.RECIPE, "epochs": 4}))
    assert erase(run_id) == "needs_attention"
    assert needs_help(tiny_context, run_id, "recipe the model in service was trained with")
    assert tiny.attempts(tiny_context) == []


def test_a_run_whose_second_making_differs_is_not_deployed(erase, pipeline, tiny_context, monkeypatch):
    made_twice(pipeline, monkeypatch, seeds_apart=1)
    run_id = tiny.claim_run(pipeline.context, tiny.people(tiny_context)[0])
    assert erase(run_id) == "needs_attention"
    assert needs_help(tiny_context, run_id, "Made a second time")
    assert [attempt.verdict for attempt in tiny.attempts(tiny_context)] == ["FAILED", "PASSED"]


def test_an_error_of_a_step_ends_the_run_with_its_place(erase, tiny_context):
    person = tiny.people(tiny_context)[0]
    run_id = tiny.claim_run(tiny_context, person)
    tiny.images_of(tiny_context, person)[0].write_text(SECRET)
    assert erase(run_id) == "needs_attention"
    assert needs_help(tiny_context, run_id, "The run stopped on FacesError in ")


@pytest.mark.parametrize("whose", ["the method's", "the network's"])
def test_code_that_exits_ends_neither_worker_nor_run_but_asks_for_help(erase, tiny_context, monkeypatch, whose):
    """DBOS would leave such a run pending until the worker starts again."""

    def leave(*_arguments, **_options):
        sys.exit(0)

    if whose == "the method's":
        monkeypatch.setitem(METHODS, "finetune", replace(METHODS["finetune"], function=leave))
    else:
        monkeypatch.setattr(candidates, "refusal", leave)  # where the candidate answers in the worker's own process
    run_id = tiny.claim_run(tiny_context, tiny.people(tiny_context)[0])
    assert erase(run_id) == "needs_attention"
    assert needs_help(tiny_context, run_id, "The run stopped on ExitedError in ")
    assert tiny.certificates(tiny_context) == []


def test_a_workflow_that_finds_a_run_between_unlearning_and_audit_deploys_before_it_destroys(erase, tiny_context):
    """The bank of references and the failed candidate are there; an earlier version of the program made them."""
    run_id = tiny.plan_run(tiny_context, tiny.people(tiny_context)[0])
    assert not tiny.try_step(tiny_context, run_id, tiny.FINETUNE)
    assert tiny.run_of(tiny_context, run_id).stage == "auditing"
    assert erase(run_id) == "completed"
    assert deployment.pointer(tiny_context).committed_generation == 2
    assert [attempt.verdict for attempt in tiny.attempts(tiny_context)] == ["FAILED", "PASSED"]


@pytest.mark.parametrize("stage", ["deploying", "purging"])
def test_a_workflow_that_finds_a_run_under_way_goes_on_from_there(erase, tiny_context, stage):
    """No model is made a second time of a data folder that may have lost its images."""
    run_id = tiny.judge_run(tiny_context, tiny.people(tiny_context)[0])
    advance(tiny_context, run_id, "deploying")
    if stage == "purging":
        tiny.deploy(tiny_context, run_id)
    before = tiny.attempts(tiny_context)
    assert erase(run_id) == "completed"
    assert tiny.attempts(tiny_context) == before
    assert deployment.pointer(tiny_context).committed_generation == 2
    (request,) = tiny.requests(tiny_context)
    assert moves_of(tiny_context, request)[-3:] == ["deploying", "purging", "completed"]
    assert [record.verdict for record in tiny.certificates(tiny_context)] == ["PASSED"]
