"""LitServe with batching: two inference workers on the CPU, two HTTP servers (its default: one a worker).

`fast_queue` is its quicker transport; CONTENDER_BATCH_SECONDS is how long a batch gathers (`serving.py` says which).
"""

from __future__ import annotations

import os
import sys

import litserve
import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders.model import Model, answer


class Faces(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model.from_environment()

    def decode_request(self, request):  # no annotations: LitServe makes a route of them
        return self.model.decode(request["image"].file.read())

    def batch(self, inputs: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.stack(inputs)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.model.predict(images)

    def unbatch(self, output: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return list(output)

    def encode_response(self, output):
        return answer(output)


if __name__ == "__main__":
    faces = Faces(max_batch_size=32, batch_timeout=float(os.environ.get("CONTENDER_BATCH_SECONDS", "0.005")))
    server = litserve.LitServer(faces, accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
