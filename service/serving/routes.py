"""The prediction routes as OpenAPI describes them; `predict.py` answers them.

Tested in `tests/service/serving/test_predict.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from service.api.routes import problems
from service.http.guard import require
from service.keys.api_keys import PREDICT, Client
from service.serving import images
from service.serving.predict import MOST_IMAGES, Predictor

Handler = Callable[[Request], Awaitable[Response]]

_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_PROBABILITIES = {"glasses": 0.93, "no_glasses": 0.07}


class PredictionAnswer(BaseModel):
    """What the model says of one image."""

    label: str = Field(description="The most probable class.", examples=["glasses"])
    probabilities: dict[str, float] = Field(
        description="Probability of each class. With `top`: of the most probable ones, these first. Empty where the "
        "operator lets predictions say the class only.",
        examples=[_PROBABILITIES],
    )
    model_version: str = Field(description="SHA-256 of the weights that gave this answer.", examples=[_DIGEST])
    generation: int = Field(
        description="Number of the model version; it grows with each one put into service.", examples=[3]
    )
    request_id: str = Field(
        description="Also in the header X-Request-ID and in the service's log.", examples=["0d6c1a4e7b62"]
    )


class ImageProblem(BaseModel):
    """Why one image among several was not answered, in the words of `Problem`."""

    type: str = Field(examples=["urn:expunge:problem:invalid-input"])
    title: str = Field(examples=["Invalid input"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["Expected a whole image, got a damaged or truncated one."])


class ImageAnswer(BaseModel):
    """One image among several: its label and probabilities, or its problem."""

    label: str | None = Field(examples=["glasses"])
    probabilities: dict[str, float] | None = Field(examples=[_PROBABILITIES])
    problem: ImageProblem | None = Field(examples=[None])


class PredictionsAnswer(BaseModel):
    """What the model says of several images, in the order they were sent; one model version answers them all."""

    predictions: list[ImageAnswer]
    model_version: str | None = Field(description="Null if no image could be read.", examples=[_DIGEST])
    generation: int | None = Field(description="Null if no image could be read.", examples=[3])
    request_id: str = Field(description="As for one image.", examples=["0d6c1a4e7b62"])


_FILE = {"type": "string", "format": "binary"}
_FILES = {"type": "array", "items": _FILE, "minItems": 1, "maxItems": MOST_IMAGES}


def _form(image: dict[str, Any]) -> dict[str, Any]:
    return {
        "multipart/form-data": {"schema": {"type": "object", "required": ["image"], "properties": {"image": image}}}
    }


def _body(description: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "description": description, "content": content}}


_ONE = _body(
    "The image itself, or a form with one file named `image`.",
    {**{kind: {"schema": _FILE} for kind in images.MEDIA_TYPES}, **_form(_FILE)},
)
_MANY = _body(f"A form with one to {MOST_IMAGES} files, each named `image`.", _form(_FILES))
_TIMING = {
    "Server-Timing": {
        "schema": {"type": "string"},
        "description": "Milliseconds of decoding, of waiting, and of the batch that the image was computed in.",
        "example": "decode;dur=0.08, wait;dur=1.92, model;dur=6.40",
    }
}

Caller = Annotated[Client, Depends(require(PREDICT))]
Top = Annotated[
    int | None, Query(ge=1, le=999_999, description="How many classes to give probabilities of; default: all.")
]


def prediction_routes(predictor: Predictor) -> APIRouter:
    """The routes of one serving process, described and found by FastAPI; the predictor reads the request itself."""
    router = APIRouter()
    errors = problems(413, 429)
    errors[415] = {**errors[413], "description": "Not a JPEG, PNG or WebP image, or not the kind of body expected"}
    errors[429]["description"] = "This client has as many images here as it may"
    responses: dict[int | str, dict[str, Any]] = {200: {"headers": _TIMING}, **errors}

    async def predict(_: Caller, top: Top = None) -> None:
        """Classify one face image: JPEG, PNG or WebP, as the body itself or as the form field `image`.

        Every answer is whole: label, probabilities and `model_version` come from the same weights, also while a new
        model version is put into service.
        """

    async def predict_batch(_: Caller, top: Top = None) -> None:
        """Classify several face images of one form in one go, all by the same weights.

        The call is answered with 200 if the form could be read; an image that could not be read has its own `problem`,
        and the others their answers.
        """

    for path, handler, describe, answer, body in (
        ("/predictions", predictor.answer_one, predict, PredictionAnswer, _ONE),
        ("/predictions/batch", predictor.answer_many, predict_batch, PredictionsAnswer, _MANY),
    ):
        router.add_api_route(
            path, describe, methods=["POST"], response_model=answer, openapi_extra=body, responses=responses,
            tags=["predictions"], route_class_override=_handled_by(handler),
        )  # fmt: skip
    return router


def _handled_by(handler: Handler) -> type[APIRoute]:
    """Class of a route whose function only describes it."""

    class HandledRoute(APIRoute):
        def get_route_handler(self) -> Handler:  # type: ignore[override]  # a request in, a response out, no more
            return handler

    return HandledRoute
