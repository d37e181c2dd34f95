#!/usr/bin/env bash
# numpy pads a seed with zeros and cuts large numbers into 32-bit words: default_rng(7), default_rng([7, 0]) and
# default_rng([7, 0, 0]) are one stream, and so are default_rng([7, 1]) and default_rng(7 + 2**32).
# What one expects: [seed, number] gives each number, 0 included, a stream apart from the seed's own.
# `SeedSequence(7).spawn` does.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import numpy as np


def drawn(seed):
    return int(np.random.default_rng(seed).integers(10**9))


print("numpy", np.__version__)
print("expected: four different numbers from the seeds 7, [7, 0], [7, 0, 0] and the first child of 7")
numbers = [drawn(seed) for seed in (7, [7, 0], [7, 0, 0], np.random.SeedSequence(7).spawn(1)[0])]
print("found:   ", numbers)
print("seeds [7, 1] and 7 + 2**32:", drawn([7, 1]), drawn(7 + 2**32))
as_stated = numbers[0] == numbers[1] == numbers[2] != numbers[3] and drawn([7, 1]) == drawn(7 + 2**32)
sys.exit(0 if as_stated else 1)
EOF
