"""`POST /predictions`: one face image in, a label with probabilities and the model version that gave them out.

The order of work guards the process: size of the body, key, number of requests, format and pixels of the image, and
only then decoding. A response belongs to the generation that computed it until its last byte was sent (`slot.py`).
"""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from service import images
from service.api import problems
from service.auth import PREDICT, Client, require
from service.batching import InputChangedError, MicroBatcher, Prediction
from service.errors import ExpungeError, InvalidInputError, TryLaterError, UnsupportedImageError
from service.metrics import Watch
from service.middleware import FORM_OVERHEAD_BYTES, passage_of
from service.problems import request_id_of
from service.settings import Settings
from service.slot import ModelSlot

_FEW_PIXELS = 1 << 16  # decoded in well under a millisecond: handing them to a thread would take longer


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


class _Desk:
    """Takes requests up to the number that may wait, decodes their images, and asks the batcher."""

    def __init__(self, slot: ModelSlot, batcher: MicroBatcher, settings: Settings, watch: Watch) -> None:
        self._slot = slot
        self._batcher = batcher
        self._watch = watch
        self._settings = settings
        self._n_inside = 0
        self._decoders = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")

    async def predict(self, request: Request) -> Prediction:
        if self._n_inside >= self._settings.max_queue:
            raise TryLaterError(f"Expected fewer than {self._settings.max_queue} images to wait here; send it again.")
        self._n_inside += 1
        try:
            content = await _body(request, self._settings.max_image_bytes)
            for _ in range(3):  # again only if the model's image size changed meanwhile
                image = await self._decode(content)
                try:
                    return await self._batcher.predict(image, passage_of(request.scope))
                except InputChangedError:
                    continue
            raise TryLaterError("The model's image size changed while this image was decoded; send it again.")
        finally:
            self._n_inside -= 1

    async def _decode(self, content: bytes) -> NDArray[np.uint8]:
        engine = self._slot.current or self._slot.staged
        if engine is None:
            raise TryLaterError(self._slot.why_not_ready() or "The model is being loaded.")
        n_pixels = images.n_pixels(
            content, max_bytes=self._settings.max_image_bytes, max_pixels=self._settings.max_image_pixels
        )

        def decode() -> NDArray[np.uint8]:
            started = time.perf_counter()
            pixels = images.pixels(content, size=engine.image_size, channels=engine.channels)
            self._watch.image(len(content), time.perf_counter() - started)
            return pixels

        if n_pixels <= _FEW_PIXELS:
            return decode()
        return await asyncio.get_running_loop().run_in_executor(self._decoders, decode)


def predictions_router(slot: ModelSlot, batcher: MicroBatcher, settings: Settings, watch: Watch) -> APIRouter:
    """The route, for one serving process."""
    router, desk = APIRouter(), _Desk(slot, batcher, settings, watch)
    errors = problems(413)
    errors[415] = {**errors[413], "description": "The body is not a JPEG, PNG or WebP image"}

    @router.post(
        "/predictions",
        response_model=PredictionAnswer,
        openapi_extra=_BODY,
        responses=errors,
        tags=["predictions"],
    )
    async def predict(request: Request, client: Annotated[Client, Depends(require(PREDICT))]) -> Response:
        """Classify one face image: JPEG, PNG or WebP, as the body itself or as the form field `image`.

        Every answer is whole: label, probabilities and `model_version` come from the same weights, also while a new
        model version is put into service.
        """
        try:
            prediction = await desk.predict(request)
        except ExpungeError as error:
            watch.rejection(error.title)
            raise
        except ClientDisconnect:
            watch.rejection("Disconnected")
            return Response(status_code=400)  # to nobody
        watch.prediction(prediction.best, float(prediction.probabilities[prediction.best]))
        return _answer(prediction, request_id_of(request))

    return router


def _answer(prediction: Prediction, request_id: str) -> Response:
    engine, best = prediction.engine, prediction.best
    probabilities = [round(value, 6) for value in prediction.probabilities.tolist()]
    answer = {
        "label": engine.classes[best],
        "probabilities": dict(zip(engine.classes, probabilities, strict=True)),
        "model_version": engine.digest,
        "generation": engine.generation,
        "request_id": request_id,
    }
    return Response(json.dumps(answer, ensure_ascii=False), media_type="application/json")


async def _body(request: Request, max_bytes: int) -> bytes:
    """The image's bytes, out of whichever body carries them.

    Raises:
        UnsupportedImageError: the body is declared to be something else.
        InvalidInputError: a form that cannot be read, or without one file named `image`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form_image(request, max_bytes)
    if kind in images.MEDIA_TYPES or kind in {"", "application/octet-stream"}:
        return await request.body()
    raise UnsupportedImageError(
        "Expected the content type image/jpeg, image/png, image/webp, or multipart/form-data with the field 'image'."
    )


async def _form_image(request: Request, max_bytes: int) -> bytes:
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=8)
    parser.spool_max_size = max_bytes + FORM_OVERHEAD_BYTES  # a face never touches the disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise InvalidInputError("Expected a well-formed form with one file, named 'image'.") from error
    try:
        upload = form.get("image")
        if not isinstance(upload, UploadFile):
            raise InvalidInputError("Expected a file in the form field 'image'; the form has none.")
        return await upload.read()
    finally:
        await form.close()
