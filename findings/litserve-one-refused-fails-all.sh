#!/usr/bin/env bash
# LitServe decodes the questions of a batch together: where `decode_request` refuses one, all that came with it are
# answered 500. A batch with another number of results is noticed, unlike in BentoML.
# What one expects: a question that cannot be read is its own error, as it is without batches.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  litserve==0.2.19 httpx==0.28.1 || exit 2
cat > serve.py <<'EOF'
import sys

import litserve


class Doubling(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return int(request["number"])

    def batch(self, inputs):
        return list(inputs)

    def predict(self, numbers):
        return [2 * number for number in numbers]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"double": output}


if __name__ == "__main__":
    server = litserve.LitServer(Doubling(max_batch_size=4, batch_timeout=5), accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
EOF
cat > ask.py <<'EOF'
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
command = [sys.executable, "-W", "ignore", "serve.py", str(port)]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
process = subprocess.Popen(command, start_new_session=True, **quiet)
client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
for _ in range(600):
    try:
        if client.get("/health").status_code == 200:
            break
    except httpx.TransportError:
        pass
    time.sleep(0.2)


def status(number):
    return client.post("/predict", json={"number": number}).status_code


with ThreadPoolExecutor(4) as threads:
    alone = status("x"), status("1")
    for _ in range(10):
        found = list(threads.map(status, ["1", "2", "x", "4"]))
        if found == [500] * 4:
            break
os.killpg(process.pid, signal.SIGKILL)
print("litserve 0.2.19")
print("expected: 200 for 1, 2 and 4, an error for x alone")
print("found:   ", *found, "of one batch; x alone and 1 alone:", *alone)
sys.exit(0 if found == [500] * 4 and alone == (500, 200) else 1)
EOF
venv/bin/python ask.py
