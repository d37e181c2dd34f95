#!/usr/bin/env bash
# After s3fs has listed a folder, an object that somebody else puts there does not exist for this process: `exists` is
# false, `cat` and `open` raise FileNotFoundError, though they would only have to ask for it. One that was deleted
# still exists.
# What one expects: a cached listing may be old, but reading an object by its name asks the store.
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

reader = s3fs.S3FileSystem(skip_instance_cache=True)
writer, fresh = (s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False) for _ in range(2))
writer.mkdir("bucket")
writer.pipe_file("bucket/folder/old", b"old")
for each in (reader, fresh):
    each.ls("bucket/folder")
writer.pipe_file("bucket/folder/new", b"new")
writer.rm_file("bucket/folder/old")


def read(files):
    try:
        return files.cat("bucket/folder/new")
    except FileNotFoundError:
        return "FileNotFoundError"


print("s3fs", s3fs.__version__)
print("expected: cat reads the new object")
print("found:   ", read(reader), "; exists:", reader.exists("bucket/folder/new"))
print("the deleted one exists:", reader.exists("bucket/folder/old"))
print("with use_listings_cache=False:", read(fresh), fresh.exists("bucket/folder/old"))
is_stale = read(reader) == "FileNotFoundError" and reader.exists("bucket/folder/old")
is_fresh = read(fresh) == b"new" and not fresh.exists("bucket/folder/old")
server.stop()
sys.exit(0 if is_stale and is_fresh else 1)
EOF
