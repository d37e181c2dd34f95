"""The limit: the model in a loop, without a server. One process of one thread; `serving.py` runs two at once.

Reads one line of JSON a task from standard input, `{"batch": 32, "decode": true, "engine": "", "seconds": 3}`, and
answers each with one: images done, seconds and processor seconds they took. `engine`: as our
service computes the model, by the backend of that name; empty: as torch does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.contenders.model import Model, answer, has_openvino


def main() -> None:
    model = Model.from_environment()
    files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
    decoded = [model.decode(content) for content in files]
    predict = {"": model.predict, "torch": model.engine().predict}
    if has_openvino():
        predict["openvino"] = model.engine("openvino").predict
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        size, n_done, next_one = task["batch"], 0, 0
        began, cpu = time.perf_counter(), time.process_time()
        while (seconds := time.perf_counter() - began) < task["seconds"]:
            chosen = [(next_one + i) % len(files) for i in range(size)]
            images = [model.decode(files[i]) if task["decode"] else decoded[i] for i in chosen]
            for row in predict[task["engine"]](np.stack(images)):
                answer(row)
            n_done, next_one = n_done + size, chosen[-1] + 1
        print(json.dumps({"n": n_done, "seconds": seconds, "cpu_seconds": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    main()
