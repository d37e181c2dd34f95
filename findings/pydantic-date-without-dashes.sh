#!/usr/bin/env bash
# A field of type datetime reads "20300101", a date of ISO 8601 in its short form, as seconds since 1970: August 23rd
# 1970. A number above 20,000,000,000 is of milliseconds instead, so a later number can be an earlier time.
# What one expects: January 1st 2030, or an error; and numbers have one unit.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  pydantic==2.14.3 || exit 2
venv/bin/python - <<'EOF'
import datetime as dt
import importlib.metadata
import sys

from pydantic import TypeAdapter

read = TypeAdapter(dt.datetime).validate_python
short, long = read("20300101"), read("2030-01-01")
below, above = read(20_000_000_000), read(20_000_000_001)
print("pydantic", importlib.metadata.version("pydantic"), "; the standard library:", dt.datetime.fromisoformat("20300101"))
print("expected:", long, "; a number larger by one is one second later")
print("found:   ", short, ";", below, "and", above)
sys.exit(0 if short.year == 1970 and long.year == 2030 and above < below else 1)
EOF
