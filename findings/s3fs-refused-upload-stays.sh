#!/usr/bin/env bash
# A file opened with "xb" that is there already is refused only when it is closed, and the upload in parts is not aborted:
# they stay in the bucket, with all their bytes, where neither ls nor du nor rm sees them.
# What one expects: what was refused is gone, as it is after `pipe_file(mode="create")` or `discard`.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  s3fs==2026.9.0 'moto[server]==5.2.5' || exit 2
venv/bin/python - <<'EOF'
import logging
import os
import sys

import s3fs
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
MIB = 2**20
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
port = server.get_host_and_port()[1]
address = f"http://127.0.0.1:{port}"
files = s3fs.S3FileSystem(endpoint_url=address, key="one", secret="two", use_listings_cache=False)
files.mkdir("bucket")
files.pipe_file("bucket/object", b"there")


def bytes_kept():
    """Of unfinished uploads."""
    kept = 0
    for upload in files.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", []):
        parts = files.call_s3("list_parts", Bucket="bucket", Key=upload["Key"], UploadId=upload["UploadId"])
        kept += sum(part["Size"] for part in parts["Parts"])
    return kept // MIB


def refused(write):
    try:
        write()
    except FileExistsError:
        kept = bytes_kept()
        files.clear_multipart_uploads("bucket")
        return kept, files.cat_file("bucket/object"), files.du("bucket")


def exclusively():
    with files.open("bucket/object", "xb", block_size=5 * MIB) as file:
        file.write(bytes(12 * MIB))


def dropped():
    file = files.open("bucket/other", "wb", block_size=5 * MIB)
    file.write(bytes(12 * MIB))
    file.discard()
    return bytes_kept()


found = {
    "xb": refused(exclusively),
    "create": refused(lambda: files.pipe_file("bucket/object", bytes(12 * MIB), mode="create", chunksize=5 * MIB)),
    "discard": dropped(),
}
print("s3fs", s3fs.__version__)
print("expected: nothing kept of what was refused")
print("found:    MiB kept, the object, du:", found)
sys.stdout.flush()
os._exit(0 if found == {"xb": (12, b"there", 5), "create": (0, b"there", 5), "discard": 0} else 1)
EOF
