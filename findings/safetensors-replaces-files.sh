#!/usr/bin/env bash
# safetensors.torch.save_file makes a new file and moves it to the name: readable by its owner alone, whatever the umask
# and whatever the file before was; a symbolic link is exchanged for a file, and other names of the old file (hard links,
# open handles) keep the old weights.
# What one expects: it writes as `open(path, "wb")` does: mode 0644 under a umask of 022, through links, into the file.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  safetensors==0.8.0 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import os
import sys
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

os.umask(0o022)
first, second = {"w": np.zeros(2, np.float32)}, {"w": np.ones(2, np.float32)}


def mode_of(path):
    return oct(path.lstat().st_mode & 0o777)


plain = Path("plain")
plain.write_bytes(b"")
new, shared, other_name, link = Path("new"), Path("shared"), Path("other-name"), Path("link")
save_file(first, new)
save_file(first, shared)
shared.chmod(0o664)
other_name.hardlink_to(shared)
save_file(second, shared)
link.symlink_to(plain)
save_file(second, link)
found = {
    "a new file": mode_of(new),
    "over one with 0o664": mode_of(shared),
    "its other name holds": load_file(other_name)["w"].tolist(),
    "a link is still one": link.is_symlink(),
}
print("safetensors", safetensors.__version__)
print(f"expected: {mode_of(plain)} as a plain file, 0o664, [1.0, 1.0], True")
print("found:   ", found)
sys.exit(0 if [*found.values()] == ["0o600", "0o600", [0.0, 0.0], False] else 1)
EOF
