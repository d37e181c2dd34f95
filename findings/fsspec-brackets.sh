#!/usr/bin/env bash
# fsspec takes a name with brackets for a pattern where it asks for a path: `rm("x[1]")` removes x1 and leaves x[1],
# `cat` reads the other file, `get` finds nothing. Names ending in `_file` (rm_file, cat_file, get_file) take names as
# they are.
# What one expects: a file of exactly this name is the one meant; only `glob` expands.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  fsspec==2026.9.0 || exit 2
venv/bin/python - <<'EOF'
import sys

import fsspec

memory = fsspec.filesystem("memory")
memory.pipe_file("/both/x1", b"x1")
memory.pipe_file("/both/x[1]", b"x[1]")
read = memory.cat("/both/x[1]")
memory.rm("/both/x[1]")
left = memory.find("/both")
memory.pipe_file("/alone/x[1]", b"x[1]")
try:
    memory.get("/alone/x[1]", "copy")
    got = "copied"
except FileNotFoundError:
    got = "FileNotFoundError"
memory.rm_file("/alone/x[1]")
print("fsspec", fsspec.__version__, "(the same on s3fs 2026.9)")
print("expected: cat and rm are about x[1], get copies it")
print(f"found:    cat read {read}, rm left {left}, get of the only file: {got}, rm_file left {memory.find('/alone')}")
sys.exit(0 if left == ["/both/x[1]"] and got == "FileNotFoundError" and not memory.find("/alone") else 1)
EOF
