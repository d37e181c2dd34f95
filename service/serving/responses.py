"""The JSON of predictions, and their times for the header `Server-Timing`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from service.errors import ExpungeError
from service.http.problems import summary_of
from service.inference.engine import Engine
from service.serving.batching import Prediction

Detail = Literal["full", "rounded", "label"]
"""As the setting `answers`."""
_PLACES = {"full": 6, "rounded": 2}


def prediction_json(prediction: Prediction, request_id: str, top: int | None = None, detail: Detail = "full") -> str:
    """What the model says of one image: all classes in the model's order, or the `top` most probable, these first.

    Args:
        request_id: of the call.
        detail: what is said of probabilities.
    """
    answer = {**_said(prediction, top, detail), **_source(prediction.engine), "request_id": request_id}
    return json.dumps(answer, ensure_ascii=False)


def predictions_json(
    found: Sequence[Prediction | ExpungeError], request_id: str, top: int | None = None, detail: Detail = "full"
) -> str:
    """What the model says of several images, in their order; an image that could not be read has its problem instead.

    Args:
        request_id, detail: as `prediction_json`.
    """
    engine = next((each.engine for each in found if isinstance(each, Prediction)), None)
    predictions = [
        {**_said(each, top, detail), "problem": None}
        if isinstance(each, Prediction)
        else {"label": None, "probabilities": None, "problem": summary_of(each)}
        for each in found
    ]
    return json.dumps({"predictions": predictions, **_source(engine), "request_id": request_id}, ensure_ascii=False)


def server_timing(decode_seconds: float, waited_seconds: float, computed_seconds: float) -> str:
    """Value of the header `Server-Timing`, whose durations are milliseconds: decoding, waiting, the batch."""
    return (
        f"decode;dur={1e3 * decode_seconds:.2f}, wait;dur={1e3 * waited_seconds:.2f}, "
        f"model;dur={1e3 * computed_seconds:.2f}"
    )


def _said(prediction: Prediction, top: int | None, detail: Detail) -> dict[str, Any]:
    """Label and probabilities."""
    classes, values = prediction.engine.classes, prediction.probabilities.tolist()
    if detail == "label":
        return {"label": classes[prediction.best], "probabilities": {}}
    order: Sequence[int] = range(len(classes))
    if top is not None:
        order = sorted(order, key=lambda i: -values[i])[:top]
    return {
        "label": classes[prediction.best],
        "probabilities": {classes[i]: round(values[i], _PLACES[detail]) for i in order},
    }


def _source(engine: Engine | None) -> dict[str, Any]:
    """Which model said it."""
    return {"model_version": engine and engine.digest, "generation": engine and engine.generation}
