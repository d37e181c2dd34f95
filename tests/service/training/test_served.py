"""Candidates scored by the serving engine."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import psutil
import pytest

import audit
from audit.proof.envelope import read_payload
from service.context import Context
from service.erasure.candidates import spec_of, unlearn
from service.errors import WeightsError
from service.inference.engine import Engine
from service.models import networks, registry
from service.models.registry import CheckedWeights
from service.training.jobs import release_processes
from service.training.served import score_as_served
from tests.service import tiny
from unlearning.faces.views import VIEWS


@pytest.fixture
def candidate(tiny_context: Context):
    """A workspace with a retrained candidate, its spec and manifest."""
    run_id = tiny.plan_run(tiny_context, tiny.people(tiny_context)[0])
    work = tiny.workspace(tiny_context, run_id)
    assert unlearn(work, tiny.RETRAIN) is None
    manifest = registry.Manifest.from_dict(registry.get(tiny_context, work.run.base_digest).manifest)
    return work, spec_of(work, "retrain"), manifest


def in_one_piece(shown: np.ndarray, engine: Engine, labels: np.ndarray) -> np.ndarray:
    return audit.margins(engine.logits(np.ascontiguousarray(shown)), labels).astype(np.float32)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_margins_are_those_of_the_engine(tiny_context: Context, candidate, backend: str) -> None:
    work, spec, manifest = candidate
    settings = tiny_context.settings.model_copy(update={"backend": backend})
    outcome, weights = work.folder.read("step-1"), work.folder.weights(tiny.RETRAIN)
    found = score_as_served(spec, manifest, weights, outcome["weights_digest"], settings)
    checked = CheckedWeights(outcome["weights_digest"], manifest, weights.read_bytes())
    engine = Engine.load(checked, 1, "cpu", backend=backend)
    labels, images = work.faces.labels[spec.scored], work.faces.images[spec.scored]
    for view, margins in zip(VIEWS.values(), found.views, strict=True):
        np.testing.assert_array_equal(margins, in_one_piece(view(images), engine, labels))
    assert (found.backend, found.dtype) == (backend, str(engine.dtype).removeprefix("torch."))


def test_the_difference_from_float32_is_told(tiny_context: Context, candidate) -> None:
    work, _, _ = candidate
    outcome = work.folder.read("step-1")
    served = outcome["served"]
    difference = np.abs(np.array(served["views"]) - np.array(outcome["views"], dtype=np.float32)).max()
    assert served["largest_difference"] == pytest.approx(difference)
    assert difference < 0.2  # a tiny model in bfloat16 at worst


def test_a_file_that_holds_no_weights_is_refused(tiny_context: Context, candidate, tmp_path) -> None:
    _, spec, manifest = candidate
    path = tmp_path / "weights"
    path.write_bytes(b"none")
    with pytest.raises(WeightsError):
        score_as_served(spec, manifest, path, "0" * 64, tiny_context.settings)


def test_report_and_certificate_name_the_arithmetic(tiny_context: Context, candidate) -> None:
    work, _, _ = candidate
    tiny.try_step(tiny_context, work.run_id, tiny.RETRAIN)
    (attempt,) = tiny.attempts(tiny_context)
    assert attempt.figures["served"].keys() == {"backend", "dtype", "largest_difference"}
    report = next(tiny_context.settings.reports_folder.rglob("step-1.html")).read_text()
    assert f"by torch in {attempt.figures['served']['dtype']}" in report


def test_a_candidate_is_served_by_the_network_it_was_audited_by(tiny_context: Context) -> None:
    context = replace(tiny_context, settings=tiny_context.settings.model_copy(update={"backend": "openvino"}))
    tiny.finish(context, tiny.judge_run(context, tiny.people(context)[0]))
    (attempt,) = tiny.attempts(context)
    audited = attempt.figures["served"]["network"]
    weights = registry.load_checked(context, attempt.candidate_digest)
    assert weights.manifest.network == networks.digest_of(weights.network) == audited
    (certificate,) = tiny.certificates(context)
    predicate = json.loads(read_payload(certificate.envelope["envelope"]))["predicate"]
    assert predicate["figures"]["served"]["network"] == audited


def test_another_network_in_the_runs_folder_is_not_deployed(tiny_context: Context) -> None:
    context = replace(tiny_context, settings=tiny_context.settings.model_copy(update={"backend": "openvino"}))
    run_id = tiny.judge_run(context, tiny.people(context)[0])
    (attempt,) = tiny.attempts(context)
    tiny.workspace(context, run_id).folder.network(attempt.step).write_bytes(b"another")
    with pytest.raises(ValueError, match="Expected the audited network"):
        tiny.deploy(context, run_id)


def test_one_process_makes_and_scores_a_candidate(tiny_context: Context) -> None:
    settings = tiny_context.settings.model_copy(update={"jobs": 2})
    work = tiny.workspace(
        replace(tiny_context, settings=settings), tiny.plan_run(tiny_context, tiny.people(tiny_context)[0])
    )
    release_processes()  # those that trained references
    assert unlearn(work, tiny.RETRAIN) is None
    assert sum(loads_torch(child) for child in psutil.Process().children(recursive=True)) == 1
    assert work.folder.read("step-1")["served"]["views"]
    release_processes()


def loads_torch(process: psutil.Process) -> bool:
    return any("libtorch" in library.path for library in process.memory_maps())
