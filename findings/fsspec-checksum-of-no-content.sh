#!/usr/bin/env bash
# fsspec's `checksum` of a local file is of its name, time and size, not of its content: two equal files have two
# checksums, and touching a file gives it a third. On s3:// it is of the ETag, so of the content.
# What one expects: a checksum is of the content: equal files have one, and so has a file and its copy.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  fsspec==2026.9.0 || exit 2
venv/bin/python - <<'EOF'
import os
import sys
from pathlib import Path

import fsspec

files = fsspec.filesystem("file")
one, other = Path("one").resolve(), Path("other").resolve()
for path in (one, other):
    path.write_text("the same")
first, second = files.checksum(str(one)), files.checksum(str(other))
os.utime(one, (1, 1))
touched = files.checksum(str(one))
print("fsspec", fsspec.__version__)
print("expected: one checksum of two equal files, and the same after a touch")
print("found:    equal:", first == second, "; after a touch the same:", first == touched)
sys.exit(0 if len({first, second, touched}) == 3 else 1)
EOF
