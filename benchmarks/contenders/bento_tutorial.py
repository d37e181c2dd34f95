"""BentoML as its tutorial has it: a class, an API method with an image as its parameter, no batching.

`bentoml serve benchmarks.contenders.bento_tutorial:Faces`; two workers instead of the one that is BentoML's default,
to be equal.
"""

from __future__ import annotations

from typing import Any

import bentoml
import numpy as np
import PIL.Image

from benchmarks.contenders.model import Model, answer


@bentoml.service(workers=2)
class Faces:
    def __init__(self) -> None:
        self.model = Model.from_environment()

    @bentoml.api
    def classify(self, image: PIL.Image.Image) -> dict[str, Any]:
        return answer(self.model.predict(self.model.pixels(image)[np.newaxis])[0])
