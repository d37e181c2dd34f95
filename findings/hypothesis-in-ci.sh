#!/usr/bin/env bash
# Where the environment variable CI is set hypothesis tries the same examples in every run: a profile made for CI
# derandomizes and has no deadline. What the first run did not find no later one will.
# What one expects: every run tries other examples, those of CI most of all, which run most often.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  hypothesis==6.170.15 || exit 2
cat > tries.py <<'EOF'
from hypothesis import given, settings, strategies

seen = []


@given(strategies.integers(0, 10**9))
def collect(number):
    seen.append(number)


collect()
print(sum(seen), settings().derandomize, settings().deadline)
EOF
env -u CI venv/bin/python tries.py >one && env -u CI venv/bin/python tries.py >two || exit 1
CI=true venv/bin/python tries.py >three && CI=true venv/bin/python tries.py >four || exit 1
echo "hypothesis 6.170.15"
echo "expected: other sums of the numbers tried in each of four runs"
echo "found:    $(cut -d' ' -f1 one two | xargs) without CI, $(cut -d' ' -f1 three four | xargs) with CI=true"
cmp -s three four && ! cmp -s one two
