#!/usr/bin/env bash
# BentoML deals out what a batchable method returns without counting it: if fewer results come than questions were
# put, the last ones are answered 200 with an empty list; results too many are dropped.
# What one expects: a method that returns another number of results is an error of the whole batch.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  bentoml==1.4.39 httpx==0.28.1 || exit 2
cat > service.py <<'EOF'
import time

import bentoml


@bentoml.service(traffic={"timeout": 60})
class Doubling:
    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=30_000)
    def double(self, numbers: list[int]) -> list[int]:
        time.sleep(0.2)  # so that others wait and come together
        return [2 * number for number in numbers][:1]
EOF
cat > ask.py <<'EOF'
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

os.environ |= {"BENTOML_HOME": os.path.abspath("home"), "BENTOML_DO_NOT_TRACK": "True"}


def serve(name):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", f"service:{name}", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    for _ in range(600):
        try:
            if client.get("/readyz").status_code == 200:
                return process, client
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    sys.exit("The server did not start.")


process, client = serve("Doubling")
with ThreadPoolExecutor(8) as threads:
    for _ in range(10):
        answers = list(threads.map(lambda n: client.post("/double", json={"numbers": [n]}), range(1, 9)))
        found = [(answer.status_code, answer.text) for answer in answers]
        if (200, "[]") in found:
            break
process.terminate()
process.wait()
print("bentoml 1.4.39")
print("expected: status 500 for questions of a batch of which only the first was answered")
print("found:   ", *found)
sys.exit(0 if (200, "[]") in found else 1)
EOF
venv/bin/python ask.py
