#!/usr/bin/env bash
# Two handles of one file of fsspec's memory file system share one position: reading by one moves the other, and an
# open for writing is seen by readers at once. Code tested on memory:// meets other things than on a store.
# What one expects: each `open` gives a handle of its own, as on every other file system.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  fsspec==2026.9.0 || exit 2
venv/bin/python - <<'EOF'
import sys

import fsspec


def read(files, path):
    with files.open(path, "rb") as one, files.open(path, "rb") as other:
        return one.read(4), other.read(4)


memory, local = fsspec.filesystem("memory"), fsspec.filesystem("file", auto_mkdir=True)
found = {}
for name, files in (("memory", memory), ("local", local)):
    files.pipe_file("folder/digits", b"0123456789")
    found[name] = read(files, "folder/digits")
print("fsspec", fsspec.__version__)
print("expected: both handles begin with b'0123'")
print("found:   ", found)
sys.exit(0 if found == {"memory": (b"0123", b"4567"), "local": (b"0123", b"0123")} else 1)
EOF
