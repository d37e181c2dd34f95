#!/usr/bin/env bash
# Stopped by SIGTERM, uvicorn finishes what it serves and then sends the signal to itself: what stands after
# uvicorn.run(), a `finally` around it and what `atexit` was told are not reached, and the process ends by signal 15.
# What one expects: uvicorn.run() returns after an orderly stop, and the process ends with 0.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  uvicorn==0.54.0 || exit 2
cat > serve.py <<'EOF'
import atexit
import sys

import uvicorn


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            word = (await receive())["type"]
            await send({"type": f"{word}.complete"})
            print(word, flush=True)
            if word == "lifespan.shutdown":
                return


atexit.register(lambda: print("atexit", flush=True))
try:
    uvicorn.run(app, port=int(sys.argv[1]), log_level="critical")
    print("returned", flush=True)
finally:
    print("finally", flush=True)
EOF
cat > ask.py <<'EOF'
import signal
import socket
import subprocess
import sys
import time

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
process = subprocess.Popen([sys.executable, "serve.py", str(port)], stdout=subprocess.PIPE, text=True)
for _ in range(600):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        break
    except OSError:
        time.sleep(0.1)
process.send_signal(signal.SIGTERM)
words = process.communicate()[0].split()
print("uvicorn 0.54.0")
print("expected: lifespan.startup lifespan.shutdown returned finally atexit, status 0")
print("found:   ", *words, ", status", process.returncode)
sys.exit(0 if words == ["lifespan.startup", "lifespan.shutdown"] and process.returncode == -signal.SIGTERM else 1)
EOF
venv/bin/python ask.py
