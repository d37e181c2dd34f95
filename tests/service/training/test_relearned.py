"""Margins after relearning: against a loop, and what goes of them with an erased subject."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

import audit
from service.banks.build import stores
from service.banks.file_format import OUT, RELEARNED
from service.context import Context
from service.studies.experiments import draw_references, store_of
from service.studies.forget_setup import set_stage
from service.training.jobs import run_trial
from service.training.relearned import MOST, relearned
from service.training.spec import open_images
from tests.service import tiny
from unlearning.faces.views import VIEWS
from unlearning.models import build
from unlearning.recipes import recipe_from_dict
from unlearning.relearning import STEPS, halves, relearn, retained
from unlearning.training import Examples, logits, train


def test_a_trial_with_relearning_has_margins_after_each_step(tiny_context: Context) -> None:
    spec = tiny.plan_for(tiny_context, tiny.people(tiny_context)[0]).spec
    plain = run_trial(replace(spec, with_views=True), 7)
    found = run_trial(replace(spec, with_views=True, with_relearning=True), 7)
    n = len(spec.scored)
    assert found.views.shape == (len(VIEWS) + STEPS, n)
    np.testing.assert_array_equal(found.views[: len(VIEWS)], plain.views)
    assert (found.retain_accuracy, found.test_accuracy) == (plain.retain_accuracy, plain.test_accuracy)

    faces, recipe = open_images(spec.images), recipe_from_dict(tiny.RECIPE)

    def examples(rows: np.ndarray) -> Examples:
        return Examples.from_arrays(faces.images[rows], faces.labels[rows])

    model, own = train(recipe, examples(spec.retain), n_classes=2, seed=7, device="cpu").model, halves(n)[0]
    beside = examples(spec.retain[retained(len(own), len(spec.retain))].ravel())
    learners = relearn(model, examples(spec.scored[own]), beside, recipe=recipe, device=torch.device("cpu"))
    for step, learner in enumerate(learners):
        expected = audit.margins(logits(learner, examples(spec.scored).images), faces.labels[spec.scored])
        np.testing.assert_array_equal(found.views[len(VIEWS) + step], expected.astype(np.float32))


def test_a_model_that_blows_up_in_these_steps_has_bounded_margins(tiny_context: Context) -> None:
    spec = tiny.plan_for(tiny_context, tiny.people(tiny_context)[0]).spec
    faces = open_images(spec.images)
    model = build("small_resnet", 2, channels=faces.images.shape[3], width=4)
    with torch.no_grad():
        model.fc.weight.mul_(1e20)  # so does the next step's gradient
    found = relearned(spec, faces, model)
    assert found.shape == (STEPS, len(spec.scored))
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= MOST


def test_a_single_image_is_learned_again(tiny_context: Context) -> None:
    spec = tiny.plan_for(tiny_context, tiny.people(tiny_context)[0]).spec
    found = run_trial(replace(spec, scored=spec.scored[:1], with_relearning=True), 7)
    assert found.views.shape == (1 + STEPS, 1)


def test_an_erasure_takes_what_was_relearned_too(tiny_context: Context) -> None:
    person = tiny.people(tiny_context)[0]
    stage = set_stage(tiny_context, [person])
    stage = replace(stage, plan=replace(stage.plan, key=replace(stage.plan.key, statistic=RELEARNED)))
    bank = draw_references(tiny_context, stage, 2, lambda done, wanted: None)
    assert bank.views.shape == (2, len(VIEWS) + STEPS, tiny.N_IMAGES)
    assert store_of(tiny_context, stage).find(replace(stage.plan.key, statistic=OUT), n_models=1) is None
    tag, after = tiny_context.keyring.block_hash(person), bank.views[0, -1].astype("<f4").tobytes()

    def held() -> tuple[int, int]:
        columns = sum(sum(store.count_columns([tag]).values()) for store in stores(tiny_context.settings))
        files = [path for path in tiny_context.settings.home.rglob("*") if path.is_file()]
        return columns, sum(after in path.read_bytes() for path in files)

    assert held() == (tiny.N_IMAGES, 1)
    assert sum(store.drop_subjects([tag]) for store in stores(tiny_context.settings)) == tiny.N_IMAGES
    assert held() == (0, 0)
