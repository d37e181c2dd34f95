#!/usr/bin/env bash
# A compiled model that two threads call gives threads each other's answers, without an error: calls share one
# request.
# What one expects: calling a compiled model has no state, as calling a network of PyTorch has none; or a busy request
# refuses.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys
import threading

import numpy as np
import openvino as ov
from openvino import opset13 as ops

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def compiled(function, shape, dtype=np.float32):
    given = ops.parameter(shape, dtype)
    return ov.Core().compile_model(ov.Model([function(given)], [given]), "CPU", OPTIONS)


def network(x):
    for _ in range(8):
        x = ops.matmul(x, np.eye(192, dtype=np.float32), False, False)
    return x


def wrong_answers(call_of):
    wrong = []

    def ask(number):
        call, question = call_of(), np.full((192, 192), number, np.float32)
        for _ in range(400):
            wrong.append(not (np.array(call(question)[0]) == number).all())

    threads = [threading.Thread(target=ask, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(wrong)


model = compiled(network, [192, 192])
shared = wrong_answers(lambda: model)
own = wrong_answers(lambda: model.create_infer_request().infer)
print("openvino", ov.__version__)
print("expected: no wrong answers of 1200")
print(f"found:    {shared} wrong from one compiled model, {own} where each thread has a request of its own")
sys.exit(0 if shared > 0 and own == 0 else 1)
EOF
