from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import TerminatedWorkerError

import audit
from service.errors import DataFolderError
from service.models import registry
from service.models.building import build_model
from service.models.deployment import pointer
from service.settings import Settings
from service.store.felt import Board, Period
from service.store.serving_mark import ServingMark
from service.training.child import in_child, processes_below
from service.training.jobs import in_children, release_processes, run_trial, run_trials, score, score_unlearned
from service.training.spec import open_images
from tests.processes import is_alive
from tests.service import tiny
from tests.waiting import PATIENCE_SECONDS, line_of, wait_until
from unlearning.errors import MethodError, WeightsError
from unlearning.models import build, load_weights
from unlearning.recipes import recipe_from_dict
from unlearning.training import Examples, logits, train

ROOT = Path(__file__).parents[3]
STARVED_SECONDS = 240.0  # the children have the lowest priority, and work and notice when they get the processor


@pytest.fixture
def spec(tiny_context):
    return tiny.plan_for(tiny_context, tiny.people(tiny_context)[0]).spec


@pytest.fixture
def tuning(tiny_context, spec):
    """Fine-tuning of the active model, without the people scored."""
    digest = pointer(tiny_context).committed_digest
    weights = registry.path(tiny_context.settings, digest)
    return replace(spec, method="finetune", forget=spec.scored, base_weights=weights, base_digest=digest)


def test_a_trial_is_a_training_and_the_audit_s_margins(spec):
    outcome = run_trial(spec, 7)
    faces = open_images(spec.images)

    def examples(rows):
        return Examples.from_arrays(faces.images[rows], faces.labels[rows])

    twin = train(recipe_from_dict(tiny.RECIPE), examples(spec.retain), n_classes=2, seed=7, device="cpu")
    z = {name: logits(twin.model, examples(getattr(spec, name)).images) for name in ("scored", "retain", "test")}
    expected = audit.margins(z["scored"], faces.labels[spec.scored])
    np.testing.assert_array_equal(outcome.margins, expected.astype(np.float32))
    for name in ("retain", "test"):
        assert getattr(outcome, f"{name}_accuracy") == np.mean(z[name].argmax(1) == faces.labels[getattr(spec, name)])
    assert outcome.n_forward == outcome.n_backward == tiny.RECIPE["epochs"] * len(spec.retain)
    assert outcome.seconds > 0
    assert outcome.weights_digest is None


def test_the_seed_decides(spec):
    first, again, other = (run_trial(spec, seed).margins for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_weights_that_are_kept_are_those_scored(spec, tmp_path):
    (outcome,) = run_trials(spec, [3], tiny.settings_of(tmp_path), keep_weights=tmp_path / "w.safetensors")
    model = build("small_resnet", 2, channels=3, width=4)
    load_weights(model, tmp_path / "w.safetensors", digest=outcome.weights_digest)
    views, retain_accuracy, test_accuracy = score(spec, model)
    np.testing.assert_array_equal(views, outcome.views)
    assert (retain_accuracy, test_accuracy) == (outcome.retain_accuracy, outcome.test_accuracy)


def test_a_method_starts_from_the_base_weights(tiny_context, spec, tuning):
    outcome = run_trial(tuning, 1)
    original = build_model(registry.load_checked(tiny_context, tuning.base_digest))
    before = score(spec, original)[0][0]
    retrained = run_trial(spec, 1).margins
    assert np.abs(outcome.margins - before).mean() < np.abs(outcome.margins - retrained).mean()
    np.testing.assert_array_equal(run_trial(tuning, 1).margins, outcome.margins)


def test_other_base_weights_than_named_are_refused(tuning):
    with pytest.raises(WeightsError):
        run_trial(replace(tuning, base_digest="0" * 64), 1)


@pytest.mark.parametrize("missing", ["forget", "base_weights"])
def test_a_method_needs_what_it_starts_from(tuning, missing):
    with pytest.raises(ValueError, match="Expected forget rows and base weights"):
        run_trial(replace(tuning, **{missing: None}), 1)


def test_answers_that_are_no_numbers_are_the_method_s_failure(tiny_context, spec):
    model = build_model(registry.load_checked(tiny_context, pointer(tiny_context).committed_digest))
    for parameter in model.parameters():
        parameter.data.fill_(3e38)  # finite, but sums of products are not
    with pytest.raises(MethodError, match="finetune diverged: answers that are not numbers"):
        score_unlearned(spec, "finetune", model)


def test_one_job_runs_in_this_process_and_leaves_it_alive(spec, tmp_path):
    priority, threads = os.nice(0), set(threading.enumerate())
    outcomes = list(run_trials(spec, [4, 5], tiny.settings_of(tmp_path)))
    assert [outcome.seed for outcome in outcomes] == [4, 5]
    np.testing.assert_array_equal(outcomes[1].margins, run_trial(spec, 5).margins)
    assert os.nice(0) == priority
    assert set(threading.enumerate()) <= threads  # nobody is left who would end this process


def test_images_are_opened_once_and_let_go(spec):
    faces = open_images(spec.images)
    assert open_images(spec.images) is faces
    release_processes()
    assert open_images(spec.images) is not faces


def test_images_that_changed_are_refused(spec):
    with pytest.raises(DataFolderError, match="changed meanwhile"):
        open_images(replace(spec.images, manifest_digest="0" * 64))


POLICIES = "(lambda os: (os.sched_getscheduler(0), os.sched_getscheduler(os.getppid())))(__import__('os'))"
"""How the process is scheduled that evaluates this, and the one above it."""


@pytest.mark.parametrize(
    ("priority", "served", "hurried", "policy"),
    [
        ("auto", True, "", os.SCHED_IDLE),
        ("auto", True, "pressed", os.SCHED_OTHER),
        ("auto", True, "busy", os.SCHED_OTHER),
        ("auto", False, "", os.SCHED_OTHER),
        ("normal", True, "", os.SCHED_OTHER),
    ],
)
def test_a_training_goes_last_where_predictions_are_served_and_nobody_is_in_a_hurry(
    tmp_path, priority, served, hurried, policy
):
    settings = tiny.settings_of(tmp_path, training_priority=priority)
    mark, board = ServingMark(settings.serving_mark_path), Board(settings.training_board_path)
    if served:
        mark.hold()
    if hurried == "pressed":
        board.press(time.monotonic())
    board.is_busy = hurried == "busy"
    packed = pickle.dumps((eval, (POLICIES,)))
    with ProcessPoolExecutor(max_workers=1) as executor:
        found = executor.submit(in_child, packed, os.getpid(), settings)
        assert pickle.loads(found.result(PATIENCE_SECONDS)) == (policy, os.SCHED_OTHER)  # noqa: S301
    mark.release()


def waits_if_last(folder: Path) -> str:
    """A training that comes to nothing while it goes last."""
    (folder / f"{os.getpid()}").touch()
    while os.sched_getscheduler(0) == os.SCHED_IDLE:
        os.sched_yield()
    return "done"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_training_that_comes_to_nothing_is_begun_anew_and_goes_last_no_more(tmp_path, jobs):
    settings = tiny.settings_of(tmp_path, jobs=jobs, training_priority="auto")
    mark, board = ServingMark(settings.serving_mark_path), Board(settings.training_board_path)
    mark.hold()
    (tmp_path / "begun").mkdir()
    ended: list[str] = []
    thread = threading.Thread(
        target=lambda: ended.extend(in_children(waits_if_last, [(tmp_path / "begun",)] * 3, settings)), daemon=True
    )
    thread.start()

    def has_ended() -> bool:
        board.press(time.monotonic())  # the deadline came near
        return not thread.is_alive()

    wait_until(lambda: list((tmp_path / "begun").iterdir()) or ended, "a training to begin", seconds=STARVED_SECONDS)
    wait_until(has_ended, "all to end", seconds=STARVED_SECONDS)
    assert ended == ["done"] * 3
    mark.release()
    release_processes()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_process_that_ends_by_itself_is_an_error(tmp_path, jobs):
    settings = tiny.settings_of(tmp_path, jobs=jobs)
    mark = ServingMark(settings.serving_mark_path)
    mark.hold()
    with pytest.raises(TerminatedWorkerError):
        list(in_children(os._exit, [(3,)], settings.model_copy(update={"training_priority": "auto"})))
    mark.release()
    release_processes()


def test_releasing_ends_the_children_and_those_below_them(tmp_path):
    assert len(list(in_children(os.getpid, [()] * 4, tiny.settings_of(tmp_path, jobs=2)))) == 4
    children = [child.pid for child in psutil.Process().children() if is_alive(child.pid)]
    workers = [pid for pid in children if "popen_loky" in " ".join(psutil.Process(pid).cmdline())]
    below = [each.pid for each in processes_below()]
    assert len(workers) == 2
    assert len(below) == 2
    release_processes()
    assert not any(is_alive(pid) for pid in workers + below)
    release_processes()


def settings_of_parent(tmp_path: Path) -> str:
    return tiny.settings_of(tmp_path, jobs=2, training_priority="auto").model_dump_json()


@pytest.fixture
def parent(spec, tmp_path):
    """Another process that runs trials in children; see `orphan_trials`."""
    (tmp_path / "spec.pickle").write_bytes(pickle.dumps(spec))
    command = [
        sys.executable, "-m", "tests.service.orphan_trials", str(tmp_path / "spec.pickle"), settings_of_parent(tmp_path)
    ]  # fmt: skip
    mark = ServingMark(tiny.settings_of(tmp_path).serving_mark_path)
    mark.hold()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    yield process
    mark.release()
    process.kill()
    process.wait(PATIENCE_SECONDS)
    process.stdout.close()


def test_children_work_like_this_process_and_end_with_their_parent_even_from_a_pause(parent, spec, tmp_path):
    settings = Settings.model_validate_json(settings_of_parent(tmp_path))
    told = [json.loads(line_of(parent, seconds=STARVED_SECONDS)) for _ in range(2)]
    for outcome in told:
        expected = run_trial(spec, outcome["seed"]).margins
        np.testing.assert_array_equal(np.float32(outcome["margins"]), expected)  # bit for bit
    orphans = [
        int(pid)
        for pid, what in told[-1]["children"].items()
        if "popen_loky" in what or "training.child import serve" in what
    ]
    assert len(orphans) == 4  # two that look after two
    board = Board(settings.training_board_path)

    def are_paused() -> bool:
        now = time.monotonic()
        board.period = Period(now - 1.0, now, now + 5.0)  # predictions are asked for, and take no training beside them
        return [psutil.Process(pid).status() for pid in orphans].count(psutil.STATUS_STOPPED) == 2

    wait_until(are_paused, "the trainings to pause", seconds=STARVED_SECONDS)
    parent.kill()  # SIGKILL: the parent cannot say goodbye, nor wake anybody up
    parent.wait(PATIENCE_SECONDS)
    wait_until(lambda: not any(map(is_alive, orphans)), "the children to end", seconds=STARVED_SECONDS)


def test_a_training_that_is_to_pause_from_the_start_ends_with_its_parent(tmp_path):
    """Before it has told the kernel so, nobody would end it from a pause."""
    settings = tiny.settings_of(tmp_path, training_priority="auto")
    mark, board = ServingMark(settings.serving_mark_path), Board(settings.training_board_path)
    mark.hold()

    def pause() -> bool:
        now = time.monotonic()
        board.period = Period(now - 1.0, now, now + 5.0)
        return True

    pause()
    call = (
        "import os, pickle, sys, time; from service.settings import Settings; from service.training.child import "
        "in_child; in_child(pickle.dumps((time.sleep, (1000.0,))), os.getppid(), "
        "Settings.model_validate_json(sys.argv[1]))"
    )
    first = subprocess.Popen([sys.executable, "-c", call, settings.model_dump_json()], cwd=ROOT)

    def second() -> list[int]:
        pause()
        return [child.pid for child in psutil.Process(first.pid).children()]

    (pid,) = wait_until(second, "the second process", seconds=STARVED_SECONDS)
    stopped = psutil.STATUS_STOPPED
    wait_until(lambda: pause() and psutil.Process(pid).status() == stopped, "it to pause", seconds=STARVED_SECONDS)
    first.kill()
    first.wait(PATIENCE_SECONDS)
    wait_until(lambda: not is_alive(pid), "the second process to end", seconds=STARVED_SECONDS)
    mark.release()
