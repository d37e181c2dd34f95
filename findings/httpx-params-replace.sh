#!/usr/bin/env bash
# In httpx `params` replaces the query of the URL, and `params={}` removes it. A client with params of its own takes
# the query from every URL it is given.
# What one expects: as in requests, params are added to what the URL asks already.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  httpx==0.28.1 || exit 2
venv/bin/python - <<'EOF'
import sys

import httpx

URL = "http://127.0.0.1/?token=1"
added = str(httpx.Request("GET", URL, params={"page": 2}).url)
emptied = str(httpx.Request("GET", URL, params={}).url)
client = str(httpx.Client(params={"page": 2}).build_request("GET", URL).url)
print("httpx", httpx.__version__)
print("expected: ?token=1&page=2, ?token=1 and ?token=1&page=2")
print("found:   ", *(url.partition("/?")[2] or "no query" for url in (added, emptied, client)))
sys.exit(0 if not any("token" in url for url in (added, emptied, client)) else 1)
EOF
