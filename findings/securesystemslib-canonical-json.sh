#!/usr/bin/env bash
# What securesystemslib.formats.encode_canonical makes is no JSON where a text has a line break or tab: control
# characters stand in it as they are, and json.loads refuses it. Fractions are refused, 1.0 included.
# What one expects: canonical JSON is JSON in one of its forms, as in RFC 8785, and any parser reads it.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  securesystemslib==1.6.0 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import json
import sys

from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical

encoded = encode_canonical({"reason": "moved\naway"})
try:
    read = json.loads(encoded)
except json.JSONDecodeError as error:
    read = f"JSONDecodeError: {error.msg}"
try:
    fraction = encode_canonical({"epsilon": 1.0})
except FormatError:
    fraction = "FormatError"
print("securesystemslib", importlib.metadata.version("securesystemslib"))
print("expected: json.loads reads what encode_canonical makes, and 1.0 is a number")
print("found:   ", repr(encoded), read, "; of 1.0:", fraction)
sys.exit(0 if "Error" in str(read) and fraction == "FormatError" and "\n" in encoded else 1)
EOF
