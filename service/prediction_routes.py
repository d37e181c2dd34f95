"""The prediction routes as OpenAPI describes them; the work is the desk's (`predictions.py`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from service import images
from service.api import problems
from service.auth import PREDICT, Client, require
from service.predictions import Desk

Handler = Callable[[Request], Awaitable[Response]]


class PredictionAnswer(BaseModel):
    """What the model says of one image."""

    label: str = Field(description="The most probable class.", examples=["glasses"])
    probabilities: dict[str, float] = Field(
        description="Probability of each class; they sum to 1.", examples=[{"glasses": 0.93, "no_glasses": 0.07}]
    )
    model_version: str = Field(description="SHA-256 of the weights that gave this answer.", examples=["9f86d08188…"])
    generation: int = Field(description="Number of the model version; it grows with each one put into service.")
    request_id: str = Field(description="Also in the header X-Request-ID and in the service's log.")


_BODY = {
    "requestBody": {
        "required": True,
        "description": "The image itself, or a form with one file named `image`.",
        "content": {
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in images.MEDIA_TYPES},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


def prediction_routes(desk: Desk) -> APIRouter:
    """The routes of one serving process. FastAPI describes them and finds them; the desk reads the request itself."""

    class DeskRoute(APIRoute):
        def get_route_handler(self) -> Handler:  # type: ignore[override]  # a request in, a response out, no more
            return desk.answer

    router = APIRouter(route_class=DeskRoute)
    errors = problems(413)
    errors[415] = {**errors[413], "description": "The body is not a JPEG, PNG or WebP image"}

    @router.post(
        "/predictions",
        response_model=PredictionAnswer,
        openapi_extra=_BODY,
        responses=errors,
        tags=["predictions"],
    )
    async def predict(_: Annotated[Client, Depends(require(PREDICT))]) -> None:
        """Classify one face image: JPEG, PNG or WebP, as the body itself or as the form field `image`.

        Every answer is whole: label, probabilities and `model_version` come from the same weights, also while a new
        model version is put into service.
        """

    return router
