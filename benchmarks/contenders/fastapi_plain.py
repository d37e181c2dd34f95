"""FastAPI on uvicorn, one forward pass a request, in FastAPI's pool of threads: the form most services begin with."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import Body, FastAPI

from benchmarks.contenders.model import Model, answer

models: dict[str, Model] = {}


@asynccontextmanager
async def lifespan(_: FastAPI) -> Any:
    models["faces"] = Model.from_environment()
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(content: bytes = Body(media_type="image/jpeg")) -> dict[str, Any]:
    model = models["faces"]
    return answer(model.predict(model.decode(content)[np.newaxis])[0])
