"""Margins after relearning: against a loop over the halves, and what goes of them with an erased subject."""

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
from service.training.spec import open_images
from tests.service import tiny
from unlearning.faces.views import VIEWS
from unlearning.recipes import recipe_from_dict
from unlearning.relearning import STEPS, halves, relearn, retained
from unlearning.training import Examples, logits, train


def test_a_trial_with_relearning_has_the_margins_of_both_halves_after_each_step(tiny_context: Context) -> None:
    spec = tiny.plan_for(tiny_context, tiny.people(tiny_context)[0]).spec
    plain = run_trial(replace(spec, with_views=True), 7)
    found = run_trial(replace(spec, with_views=True, with_relearning=True), 7)
    n = len(spec.scored)
    assert found.views.shape == (len(VIEWS) + 2 * STEPS, n)
    np.testing.assert_array_equal(found.views[: len(VIEWS)], plain.views)
    assert (found.retain_accuracy, found.test_accuracy) == (plain.retain_accuracy, plain.test_accuracy)

    faces, recipe = open_images(spec.images), recipe_from_dict(tiny.RECIPE)

    def examples(rows: np.ndarray) -> Examples:
        return Examples.from_arrays(faces.images[rows], faces.labels[rows])

    model = train(recipe, examples(spec.retain), n_classes=2, seed=7, device="cpu").model
    others, own = found.views[len(VIEWS) :].reshape(2, STEPS, n)
    for image in range(n):
        for half in halves(n):
            beside = examples(spec.retain[retained(len(half), len(spec.retain))].ravel())
            curve = others if image not in half else own
            steps = relearn(model, examples(spec.scored[half]), beside, recipe=recipe, device=torch.device("cpu"))
            for step, learner in enumerate(steps):
                seen = examples(spec.scored)
                margins = audit.margins(logits(learner, seen.images), seen.labels.numpy())
                assert curve[step, image] == np.float32(margins[image])


def test_a_single_image_is_its_own_half(tiny_context: Context) -> None:
    spec = tiny.plan_for(tiny_context, tiny.people(tiny_context)[0]).spec
    found = run_trial(replace(spec, scored=spec.scored[:1], with_relearning=True), 7)
    others, own = found.views[1:].reshape(2, STEPS, 1)
    np.testing.assert_array_equal(others, own)


def test_an_erasure_takes_what_was_relearned_too(tiny_context: Context) -> None:
    person = tiny.people(tiny_context)[0]
    stage = set_stage(tiny_context, [person])
    stage = replace(stage, plan=replace(stage.plan, key=replace(stage.plan.key, statistic=RELEARNED)))
    bank = draw_references(tiny_context, stage, 2, lambda done, wanted: None)
    assert bank.views.shape == (2, len(VIEWS) + 2 * STEPS, tiny.N_IMAGES)
    assert store_of(tiny_context, stage).find(replace(stage.plan.key, statistic=OUT), n_models=1) is None
    tag, after = tiny_context.keyring.block_hash(person), bank.views[0, -1].astype("<f4").tobytes()

    def held() -> tuple[int, int]:
        columns = sum(sum(store.count_columns([tag]).values()) for store in stores(tiny_context.settings))
        files = [path for path in tiny_context.settings.home.rglob("*") if path.is_file()]
        return columns, sum(after in path.read_bytes() for path in files)

    assert held() == (tiny.N_IMAGES, 1)
    assert sum(store.drop_subjects([tag]) for store in stores(tiny_context.settings)) == tiny.N_IMAGES
    assert held() == (0, 0)
