from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.serving.batching import Prediction
from service.serving.responses import prediction_json, predictions_json

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=9, unique=True)


@given(NAMES, st.data())
def test_the_answer_is_what_json_would_write(names, data):
    """Class names may hold quotation marks, per cent signs, anything."""
    values = data.draw(st.lists(st.floats(0, 1, width=32), min_size=len(names), max_size=len(names)))
    probabilities, best = np.array(values, np.float32), int(np.argmax(values))
    engine = SimpleNamespace(classes=tuple(names), digest="ab" * 32, generation=7)
    written = prediction_json(Prediction(probabilities, best, engine, 1), "r-1")
    assert json.loads(written) == {
        "label": names[best],
        "probabilities": dict(zip(names, [round(value, 6) for value in probabilities.tolist()], strict=True)),
        "model_version": "ab" * 32,
        "generation": 7,
        "request_id": "r-1",
    }
    assert list(json.loads(written)["probabilities"]) == names


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        ("full", {"old": 0.123456, "young": 0.876544}),
        ("rounded", {"old": 0.12, "young": 0.88}),
        ("label", {}),
    ],
)
@pytest.mark.parametrize("top", [None, 2])
def test_an_answer_says_no_more_than_the_setting_allows(detail, said, top):
    engine = SimpleNamespace(classes=("old", "young"), digest="ab" * 32, generation=7)
    prediction = Prediction(np.array([0.1234561, 0.8765439], np.float32), 1, engine, 1)
    one = json.loads(prediction_json(prediction, "r", top, detail))
    assert (one["label"], one["probabilities"]) == ("young", said)
    (several,) = json.loads(predictions_json([prediction], "r", top, detail))["predictions"]
    assert (several["label"], several["probabilities"]) == ("young", said)
