"""FastAPI on uvicorn with our engine and micro-batcher, nothing else of ours: no key, metrics, logs, limits, swaps."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from benchmarks.contenders.model import Model, answer
from service.inference.engine import Engine
from service.serving.batching import MicroBatcher
from service.serving.slot import InFlight


class FixedSlot:
    """One engine, for ever: what the batcher asks for before each batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def engine_for(self, _: Iterable[InFlight]) -> Engine:
        return self._engine

    def wait_for_older(self, _: int) -> None:
        """There is no other."""


parts: dict[str, Any] = {}


@asynccontextmanager
async def lifespan(_: FastAPI) -> Any:
    parts["model"] = model = Model.from_environment()
    parts["batcher"] = batcher = MicroBatcher(FixedSlot(model.engine()), max_queue=256)  # type: ignore[arg-type]
    batcher.start()
    gc.collect()
    gc.freeze()
    yield
    batcher.stop()


app = FastAPI(lifespan=lifespan)


@app.post("/predict", response_model=None)
async def predict(request: Request) -> JSONResponse:
    image = parts["model"].decode(await request.body())
    prediction = await parts["batcher"].predict(image, InFlight())
    return JSONResponse(answer(prediction.probabilities))
