#!/usr/bin/env bash
# A BentoML worker carries out synchronous methods one at a time unless `threads` says otherwise; calls wait for each
# other, also for slow ones of another method, and their time-out runs meanwhile.
# What one expects: as in Starlette and FastAPI a synchronous handler runs in a pool of some forty threads.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  bentoml==1.4.39 httpx==0.28.1 || exit 2
cat > service.py <<'EOF'
import threading

import bentoml


class Meeting:
    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)

    def meet(self, seconds: float) -> bool:
        try:
            self.barrier.wait(seconds)
        except threading.BrokenBarrierError:
            return False
        return True


@bentoml.service
class Plain(Meeting):
    @bentoml.api
    def wait(self) -> bool:
        return self.meet(3)


@bentoml.service(threads=2)
class Threaded(Meeting):
    @bentoml.api
    def wait(self) -> bool:
        return self.meet(30)
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


met = {}
for name in ("Plain", "Threaded"):
    process, client = serve(name)
    with ThreadPoolExecutor(2) as threads:
        met[name] = [answer.text for answer in threads.map(lambda _: client.post("/wait", json={}), range(2))]
    process.terminate()
    process.wait()
print("bentoml 1.4.39")
print("expected: two calls at once are carried out at once and so meet")
print("found:    without threads=", met["Plain"], "with threads=2", met["Threaded"])
sys.exit(0 if met["Plain"] == ["false"] * 2 and met["Threaded"] == ["true"] * 2 else 1)
EOF
venv/bin/python ask.py
