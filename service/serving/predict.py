"""Predictions: admission, decoding, the batcher, and the response.

The order of work protects the process: number of images waiting, key, size of the body, format and pixels of the image,
and only then decoding. What is refused because the queue is full is refused before anything was read. A request is in
flight with the generation that computed its answer until the last byte was sent (`slot.py`).

The handlers take a request and give a response, whatever happens, so that neither of the two ways to them
(`fast_path.py`) has to handle errors.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import ClientDisconnect

from service.errors import ExpungeError, InvalidInputError, TooManyAtOnceError, TryLaterError
from service.http.guard import KnownKeys, client_of
from service.http.problems import problem_for, request_id_of
from service.inference.engine import Engine
from service.keys.api_keys import PREDICT, Client
from service.serving import images
from service.serving.batching import MAX_BATCH, InputChangedError, MicroBatcher, Prediction
from service.serving.response_gate import in_flight_of
from service.serving.responses import prediction_json, predictions_json, server_timing
from service.serving.slot import ModelSlot
from service.serving.uploads import many_images, one_image
from service.settings import Settings
from service.telemetry.serving_metrics import DISCONNECTED, Watch

MOST_IMAGES = MAX_BATCH  # in one call
_FEW_PIXELS = 1 << 16  # decoded in well under a millisecond: handing them to a thread would take longer
_ANSWER_SECONDS = 15.0  # whoever waits longer is told to come again

Pixels = NDArray[np.uint8]


class Predictor:
    """Admits images up to the number that may wait, decodes them, has them computed, and answers."""

    def __init__(
        self, slot: ModelSlot, batcher: MicroBatcher, keys: KnownKeys, settings: Settings, watch: Watch
    ) -> None:
        self._slot = slot
        self._batcher = batcher
        self._keys = keys
        self._settings = settings
        self._watch = watch
        self._n_admitted = 0
        self._n_of_client: Counter[str] = Counter()
        self._decoders = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")

    @property
    def n_free(self) -> int:
        """How many more images may wait."""
        return max(0, self._settings.max_queue - self._n_admitted)

    @property
    def queue_full(self) -> TryLaterError:
        """The error when no more may."""
        return TryLaterError(f"Expected fewer than {self._settings.max_queue} images to wait here; send it again.")

    async def answer_one(self, request: Request) -> Response:
        """The response to a call with one image."""
        return await self._answer(request, self._one)

    async def answer_many(self, request: Request) -> Response:
        """The response to a call with several images."""
        return await self._answer(request, self._many)

    async def _answer(self, request: Request, work: Callable[[Request, Client], Awaitable[Response]]) -> Response:
        try:
            self._check_queue()
            client = (await client_of(request, self._keys)).demand(PREDICT)
            return await work(request, client)
        except ClientDisconnect:
            self._watch.rejection(DISCONNECTED)
            return Response(status_code=400)  # to nobody
        except Exception as error:
            if isinstance(error, ExpungeError):
                self._watch.rejection(error.title)
            return await problem_for(request, error)

    async def _one(self, request: Request, client: Client) -> Response:
        top = _top(request)
        with self._admitted(client, 1):
            content = await one_image(request)
            ((prediction,), seconds) = await self._predict(request, [content])
        if not isinstance(prediction, Prediction):
            raise prediction
        self._note(prediction)
        return _json(
            prediction_json(prediction, request_id_of(request), top, self._settings.answers), [prediction], seconds
        )

    async def _many(self, request: Request, client: Client) -> Response:
        top = _top(request)
        with self._admitted(client, 1):
            contents = await many_images(request, most=MOST_IMAGES)
            with self._admitted(client, len(contents) - 1):
                found, seconds = await self._predict(request, contents)
        for each in found:
            if isinstance(each, Prediction):
                self._note(each)
            else:
                self._watch.rejection(each.title)
        return _json(predictions_json(found, request_id_of(request), top, self._settings.answers), found, seconds)

    def _check_queue(self, n: int = 1) -> None:
        if n > self.n_free:
            raise self.queue_full

    @contextmanager
    def _admitted(self, client: Client, n: int) -> Iterator[None]:
        """Admit `n` images until the block ends.

        Raises:
            TryLaterError: too many images wait here.
            TooManyAtOnceError: too many of this client.
        """
        self._check_queue(n)
        most = self._settings.max_client_queue
        if most and self._n_of_client[client.id] + n > most:
            raise TooManyAtOnceError(f"Expected at most {most} images of one client to wait here; send fewer at once.")
        self._n_admitted += n
        self._n_of_client[client.id] += n
        try:
            yield
        finally:
            self._n_admitted -= n
            self._n_of_client[client.id] -= n
            if not self._n_of_client[client.id]:
                del self._n_of_client[client.id]

    async def _predict(
        self, request: Request, contents: Sequence[bytes]
    ) -> tuple[list[Prediction | ExpungeError], float]:
        """What each image gets, in their order, and the seconds that decoding them took."""
        for _ in range(3):  # again only if the model's image size changed meanwhile
            engine, began = self._engine(), time.perf_counter()
            decoded = [await self._decode(content, engine) for content in contents]
            seconds = time.perf_counter() - began
            good = [each for each in decoded if not isinstance(each, ExpungeError)]
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    predicted = await self._batcher.predict_together(good, in_flight_of(request.scope)) if good else []
            except InputChangedError:
                continue
            except TimeoutError:
                raise TryLaterError(f"Expected an answer within {_ANSWER_SECONDS:.0f} s; send it again.") from None
            predictions = iter(predicted)
            return [each if isinstance(each, ExpungeError) else next(predictions) for each in decoded], seconds
        raise TryLaterError("The model's image size changed while this image was decoded; send it again.")

    def _engine(self) -> Engine:
        engine = self._slot.current or self._slot.staged
        if engine is None:
            raise TryLaterError(self._slot.why_not_ready() or "The model is being loaded.")
        return engine

    async def _decode(self, content: bytes, engine: Engine) -> Pixels | ExpungeError:
        open_ = partial(
            images.opened, content, max_bytes=self._settings.max_image_bytes,
            max_pixels=self._settings.max_image_pixels,
        )  # fmt: skip
        decode = partial(self._decode_now, n_bytes=len(content), engine=engine)
        try:
            if not images.opens_fast(content):
                return await self._in_thread(lambda: decode(open_()))
            image = open_()
            if image.width * image.height <= _FEW_PIXELS:
                return decode(image)
            return await self._in_thread(lambda: decode(image))
        except InvalidInputError as error:
            return error

    async def _in_thread(self, work: Callable[[], Pixels]) -> Pixels:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    def _decode_now(self, image: Image.Image, n_bytes: int, engine: Engine) -> Pixels:
        started = time.perf_counter()
        pixels = images.pixels(image, size=engine.image_size, channels=engine.channels, proportions=engine.proportions)
        self._watch.image(n_bytes, time.perf_counter() - started)
        return pixels

    def _note(self, prediction: Prediction) -> None:
        self._watch.prediction(prediction.best, float(prediction.probabilities[prediction.best]))


def _top(request: Request) -> int | None:
    """How many classes the caller wants; none: all."""
    if not request.scope.get("query_string") or not (found := request.query_params.getlist("top")):
        return None
    given = found[0] if len(found) == 1 else ""
    if not (given.isascii() and given.isdigit() and 0 < len(given) < 7 and int(given) > 0):
        raise RequestValidationError(
            [{"type": "top", "loc": ("query", "top"), "msg": "Expected one whole number from 1 to 999999"}]
        )
    return int(given)


def _json(content: str, found: Sequence[Prediction | ExpungeError], decode_seconds: float) -> Response:
    first = next((each for each in found if isinstance(each, Prediction)), None)
    waited, computed = (first.waited_seconds, first.computed_seconds) if first else (0.0, 0.0)
    return Response(
        content,
        media_type="application/json",
        headers={"Server-Timing": server_timing(decode_seconds, waited, computed)},
    )
