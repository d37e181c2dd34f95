#!/usr/bin/env bash
# fsspec's `touch` empties a file that exists, on the local file system as well, unless told truncate=False.
# What one expects: like touch of the shell and of pathlib it changes the time and keeps the content.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  fsspec==2026.9.0 || exit 2
venv/bin/python - <<'EOF'
import sys

import fsspec

with open("local", "wb") as file:
    file.write(b"content")
fsspec.filesystem("file").touch("local")
memory = fsspec.filesystem("memory")
memory.pipe_file("/touched", b"content")
memory.touch("/touched")
with open("local", "rb") as file:
    found = [file.read(), memory.cat_file("/touched")]
print("fsspec", fsspec.__version__)
print("expected: both files still hold b'content' after touch")
print("found:   ", found)
sys.exit(0 if found == [b"", b""] else 1)
EOF
