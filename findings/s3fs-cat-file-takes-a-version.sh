#!/usr/bin/env bash
# cat_file(path, start, end) reads a range on every file system of fsspec but s3fs, whose second argument is a
# version: the call is an error there, and only with start= and end= by name it is the same. A range of an empty
# object is an error, too, and empty elsewhere.
# What one expects: what runs on memory:// and file:// runs on s3://: one interface.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  s3fs==2026.9.0 'moto[server]==5.2.5' || exit 2
venv/bin/python - <<'EOF'
import logging
import os
import sys

os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
import fsspec
import s3fs
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server.start()
os.environ["AWS_ENDPOINT_URL"] = "http://{}:{}".format(*server.get_host_and_port())
memory, s3 = fsspec.filesystem("memory"), s3fs.S3FileSystem(skip_instance_cache=True)
s3.mkdir("bucket")


def read(files, name, *place, **places):
    try:
        return files.cat_file(f"bucket/{name}", *place, **places)
    except Exception as error:
        return type(error).__name__


found = {}
for files in (memory, s3):
    files.pipe({"bucket/digits": b"0123456789", "bucket/empty": b""})
    by_name = read(files, "digits", start=2, end=5)
    found[files.protocol[0] if files is s3 else "memory"] = (
        read(files, "digits", 2, 5), by_name, read(files, "empty", start=0, end=5)
    )
print("s3fs", s3fs.__version__)
print("expected: b'234' both ways, and b'' of an empty object")
for name, answers in found.items():
    print(f"{name}:", *answers)
server.stop()
right, (place, by_name, empty) = found["memory"], found["s3"]
sys.exit(0 if right == (b"234", b"234", b"") and by_name == b"234" and "Error" in place and "Error" in empty else 1)
EOF
