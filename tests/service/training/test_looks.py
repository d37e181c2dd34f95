"""Descriptors of many subjects at once, against one subject at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import audit
from service.banks.originals import originals_plan
from service.context import Context
from service.training import data, looks
from service.training.spec import open_images
from tests.service import tiny
from unlearning.faces.views import VIEWS
from unlearning.features import features_and_logits
from unlearning.recipes import recipe_from_dict
from unlearning.training import Examples, fresh_model


@pytest.mark.parametrize("together", [1, 7, 1000])
def test_each_subject_is_set_beside_the_sample_without_them(
    tiny_context: Context, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    recipe = data.recipe_of(tiny_context)
    plan = originals_plan(tiny_context, recipe, data.images_in_service(tiny_context, recipe), ())
    faces, model = open_images(plan.spec.images), fresh_model(recipe_from_dict(tiny.RECIPE), 2)
    subjects = np.unique(faces.subject_of[plan.spec.scored])[:9]
    rows = plan.spec.scored[np.isin(faces.subject_of[plan.spec.scored], subjects)]
    rows = np.random.default_rng(0).permutation(rows)
    sample = plan.sample[np.isin(faces.subject_of[plan.sample], subjects[:4], invert=True)]  # four are not of it
    monkeypatch.setattr(looks, "TOGETHER", together)
    found = looks.look(replace(plan.spec, scored=rows, sample=sample), model)

    def features(images: np.ndarray, some: np.ndarray) -> np.ndarray:
        return features_and_logits(model, Examples.from_arrays(images, faces.labels[some]).images)[0]

    for subject in subjects:
        mine = faces.subject_of[rows] == subject
        own, beside = rows[mine], sample[faces.subject_of[sample] != subject]
        expected = audit.descriptors(
            np.array([features(view(faces.images[own]), own) for view in VIEWS.values()]),
            faces.labels[own], faces.subject_of[own], features(faces.images[beside], beside), faces.labels[beside],
        )  # fmt: skip
        np.testing.assert_allclose(found.descriptors[:, mine], expected, rtol=1e-4, atol=1e-4)
    assert len(found.others) == len(np.unique(faces.subject_of[sample]))
