"""One face image in, a label with probabilities and the model version that gave them out.

The order of work guards the process: number of requests, key, size of the body, format and pixels of the image, and
only then decoding. A response belongs to the generation that computed it until its last byte was sent (`slot.py`).

The handler takes a request and gives a response, whatever happens, so that neither of the two ways to it (`door.py`)
has to know errors.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import ClientDisconnect

from service import images
from service.answers import prediction_json
from service.auth import PREDICT, KnownKeys, client_of
from service.batching import InputChangedError, MicroBatcher, Prediction
from service.engine import Engine
from service.errors import ExpungeError, TryLaterError
from service.metrics import Watch
from service.middleware import passage_of
from service.problems import problem_for, request_id_of
from service.settings import Settings
from service.slot import ModelSlot
from service.uploads import one_image

_FEW_PIXELS = 1 << 16  # decoded in well under a millisecond: handing them to a thread would take longer


class Desk:
    """Takes requests up to the number that may wait, decodes their images, asks the batcher, and answers."""

    def __init__(
        self, slot: ModelSlot, batcher: MicroBatcher, keys: KnownKeys, settings: Settings, watch: Watch
    ) -> None:
        self._slot = slot
        self._batcher = batcher
        self._keys = keys
        self._settings = settings
        self._watch = watch
        self._n_inside = 0
        self._decoders = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")

    @property
    def is_full(self) -> bool:
        """Whether as many images wait as may."""
        return self._n_inside >= self._settings.max_queue

    @property
    def full(self) -> TryLaterError:
        """What is said to whoever comes then."""
        return TryLaterError(f"Expected fewer than {self._settings.max_queue} images to wait here; send it again.")

    async def answer(self, request: Request) -> Response:
        """The response to a prediction request, an error's included."""
        try:
            (await client_of(request, self._keys)).demand(PREDICT)
        except Exception as error:
            return await problem_for(request, error)
        try:
            prediction = await self._predict(request)
        except ClientDisconnect:
            self._watch.rejection("Disconnected")
            return Response(status_code=400)  # to nobody
        except Exception as error:
            if isinstance(error, ExpungeError):
                self._watch.rejection(error.title)
            return await problem_for(request, error)
        self._watch.prediction(prediction.best, float(prediction.probabilities[prediction.best]))
        return Response(prediction_json(prediction, request_id_of(request)), media_type="application/json")

    async def _predict(self, request: Request) -> Prediction:
        if self.is_full:
            raise self.full
        self._n_inside += 1
        try:
            content = await one_image(request, max_bytes=self._settings.max_image_bytes)
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
        picture = images.opened(
            content, max_bytes=self._settings.max_image_bytes, max_pixels=self._settings.max_image_pixels
        )
        work = partial(self._decode_now, picture, len(content), engine)
        if picture.width * picture.height <= _FEW_PIXELS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    def _decode_now(self, picture: Image.Image, n_bytes: int, engine: Engine) -> NDArray[np.uint8]:
        started = time.perf_counter()
        pixels = images.pixels(picture, size=engine.image_size, channels=engine.channels)
        self._watch.image(n_bytes, time.perf_counter() - started)
        return pixels
