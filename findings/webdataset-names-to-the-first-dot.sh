#!/usr/bin/env bash
# webdataset cuts a name at its first dot: the image anna.k.jpg is the field "k.jpg" of "anna" and has no field "jpg".
# A field "id" is decoded as a number: 007 becomes 7.
# What one expects: the extension is what follows the last dot, as for os.path.splitext; an id is text.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  webdataset==1.0.2 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import io
import sys
import tarfile

import webdataset

with tarfile.open("shard.tar", "w") as shard:
    for name, content in (("anna.k.jpg", b"1"), ("ben.jpg", b"2"), ("ben.id", b"007")):
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        shard.addfile(entry, io.BytesIO(content))
samples = list(webdataset.WebDataset("shard.tar", shardshuffle=False).decode())
found = [{name: value for name, value in sample.items() if not name.startswith("__")} for sample in samples]
keys = [sample["__key__"] for sample in samples]
print("webdataset", importlib.metadata.version("webdataset"))
print("expected: keys ['anna.k', 'ben'], a field jpg of each, and the id '007'")
print("found:    keys", keys, "and", found)
sys.exit(0 if keys == ["anna", "ben"] and "k.jpg" in found[0] and found[1]["id"] == 7 else 1)
EOF
