#!/usr/bin/env bash
# An exception within `with s3.open(name, "wb")` publishes what was written until then as a whole object, also of an
# upload in parts; and `pipe_file` within a transaction is there at once and stays when the transaction fails.
# What one expects: an object store shows an object whole or not at all, so a failed writer leaves none.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  s3fs==2026.9.0 'moto[server]==5.2.5' || exit 2
venv/bin/python - <<'EOF'
import logging
import os
import sys

os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
import s3fs
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server.start()
os.environ["AWS_ENDPOINT_URL"] = "http://{}:{}".format(*server.get_host_and_port())

s3 = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
s3.mkdir("bucket")


def fail(name, size):
    try:
        with s3.open(name, "wb", block_size=5 * 2**20) as file:
            file.write(bytes(size // 2))
            raise KeyError("no more data")
    except KeyError:
        return s3.size(name) if s3.exists(name) else None


small, large = fail("bucket/small", 1000), fail("bucket/large", 24 * 2**20)
try:
    with s3.transaction:
        s3.pipe_file("bucket/piped", b"content")
        with s3.open("bucket/opened", "wb") as file:
            file.write(b"content")
        raise KeyError("no more data")
except KeyError:
    pass
piped, opened = s3.exists("bucket/piped"), s3.exists("bucket/opened")
print("s3fs", s3fs.__version__)
print("expected: no object of any of the four")
print(f"found:    {small} of 1000 bytes, {large} of {24 * 2**20}; of the transaction: piped {piped}, opened {opened}")
server.stop()
sys.exit(0 if (small, large, piped, opened) == (500, 12 * 2**20, True, False) else 1)
EOF
