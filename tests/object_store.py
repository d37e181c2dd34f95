"""A real server that speaks S3 for the tests, from a PyPI package: nothing to install or to start by hand.

    with s3_bucket() as url:
        Storage(f"{url}/folder")

It listens on 127.0.0.1 at a port of the system's choice; child processes find it by the environment.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

BUCKET = "expunge"


@contextmanager
def s3_bucket() -> Iterator[str]:
    """URL of an empty bucket; until the end `AWS_…` variables lead to its server."""
    server = needed("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        httpx.post(f"http://{host}:{port}/moto-api/reset").raise_for_status()  # what an earlier server here held
        needed("s3fs").S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


def needed(name: str) -> Any:
    """A module of the extra `dev`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"Needs {name.partition('.')[0]}: run pip install -e '.[dev]'.")
