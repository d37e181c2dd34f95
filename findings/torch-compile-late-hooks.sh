#!/usr/bin/env bash
# A hook that is registered on a module after its torch.compile was called once is not called, without a word: neither
# one that keeps activations nor one that changes the output. Weights that change are noticed, and so is train or eval.
# What one expects: what the module does, its compiled form does; at worst it is compiled anew.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import torch
from torch import nn

question = torch.ones(2, 3)


def answers(early):
    """The sums of the module and of its compiled form, with a hook that makes zeros of a layer's output."""
    torch.compiler.reset()
    module = nn.Sequential(nn.Linear(3, 2))
    compiled = torch.compile(module, backend="eager")
    if not early:
        compiled(question)
    module[0].register_forward_hook(lambda *arguments: torch.zeros(2, 2))
    return [answer.abs().sum().item() for answer in (module(question), compiled(question))]


early, late = answers(True), answers(False)
print("torch", torch.__version__)
print("expected: 0 of the module and 0 of its compiled form")
print("found:    hook before the first call", early, "after it", late)
sys.exit(0 if early == [0, 0] and late[0] == 0 and late[1] > 0 else 1)
EOF
