#!/usr/bin/env bash
# uvicorn's limit_concurrency counts open connections, idle ones and the one that asks included: with a limit of 2 and
# one idle keep-alive connection the only request is refused with 503.
# What one expects: a limit of 2 lets two requests be answered at once, and idle connections cost nothing.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  uvicorn==0.54.0 || exit 2
venv/bin/python - <<'EOF'
import http.client
import socket
import sys
import threading

import uvicorn


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


listening = socket.create_server(("127.0.0.1", 0))
config = uvicorn.Config(app, limit_concurrency=2, lifespan="off", log_level="critical")
server = uvicorn.Server(config)
thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
thread.start()


def ask(connection):
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    return answer.status


idle, other = (http.client.HTTPConnection("127.0.0.1", listening.getsockname()[1]) for _ in range(2))
statuses = ask(idle), ask(other)
idle.close()
other.close()
server.should_exit = True
thread.join()
print("uvicorn", uvicorn.__version__)
print("expected: 200 and 200, one after the other, with limit_concurrency=2")
print("found:   ", *statuses)
sys.exit(0 if statuses == (200, 503) else 1)
EOF
