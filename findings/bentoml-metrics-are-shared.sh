#!/usr/bin/env bash
# BentoML servers of one user share the folder of their metrics: the start of a second one, of whatever service, wipes
# the first one's counts, and from then on the first reports the second's and its own are lost.
# What one expects: each server counts its own requests.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  bentoml==1.4.39 httpx==0.28.1 || exit 2
cat > service.py <<'EOF'
import bentoml


@bentoml.service
class Echo:
    @bentoml.api
    def echo(self) -> str:
        return "echo"
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


def answered(client):
    lines = client.get("/metrics").text.splitlines()
    words = ("bentoml_service_request_total", 'endpoint="/echo"', '="200"')
    return sum(float(line.split()[-1]) for line in lines if all(word in line for word in words))


first, one = serve("Echo")
for _ in range(3):
    one.post("/echo", json={})
counts = [answered(one)]
second, two = serve("Echo")
counts.append(answered(one))
for _ in range(5):
    two.post("/echo", json={})
one.post("/echo", json={})
counts.append(answered(one))
for process in (first, second):
    process.terminate()
    process.wait()
print("bentoml 1.4.39")
print("expected of the first server: 3 after 3 calls, 3 after a second was started, 4 after one more")
print("found:   ", *counts, "(the second had 5)")
sys.exit(0 if counts == [3, 0, 5] else 1)
EOF
venv/bin/python ask.py
