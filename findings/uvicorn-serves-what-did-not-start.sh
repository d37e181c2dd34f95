#!/usr/bin/env bash
# An ASGI application that raises an exception while it starts, such as one whose model cannot be loaded, is served
# all the same: uvicorn takes any exception for "knows no lifespan". With --lifespan on it ends with status 3.
# What one expects: an application that cannot start is not served.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  uvicorn==0.54.0 || exit 2
cat > app.py <<'EOF'
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("The model cannot be loaded.")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"an answer without a model"})
EOF
cat > ask.py <<'EOF'
import socket
import subprocess
import sys
import time
import urllib.request


def found(*options):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if process.poll() is not None:
            return f"ended with status {process.returncode}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                text = f"{answer.status} {answer.read().decode()}"
        except OSError:
            time.sleep(0.1)
            continue
        process.terminate()
        process.wait()
        return text
    sys.exit("The server neither answered nor ended.")


default, on = found(), found("--lifespan", "on")
print("uvicorn 0.54.0")
print("expected: the server ends")
print(f"found:    {default}; with --lifespan on: {on}")
sys.exit(0 if default.startswith("200") and on == "ended with status 3" else 1)
EOF
venv/bin/python ask.py
