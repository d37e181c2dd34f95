#!/usr/bin/env bash
# Where pydantic reads a number from text, as FastAPI does for every query and path, "1_000" is 1000, "1.0" and " 1 "
# are 1; a float takes "nan" and "1_0", and 1e400 of JSON is infinite.
# What one expects: an integer is digits with a sign, and a float of JSON is finite: anything else is an error.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  pydantic==2.14.3 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

from pydantic import TypeAdapter, ValidationError


def of_text(kind, value):
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return "error"


integers = [of_text(int, text) for text in ("1_000", "1.0", " 1 ", "1e3")]
floats = [of_text(float, text) for text in ("1_0", "nan")]
json = [repr(TypeAdapter(float).validate_json(text)) for text in ("1e400", "NaN")]
print("pydantic", importlib.metadata.version("pydantic"))
print("expected: eight errors")
print("found:   ", integers, floats, json)
sys.exit(0 if integers == [1000, 1, 1, "error"] and floats[0] == 10 and json == ["inf", "nan"] else 1)
EOF
