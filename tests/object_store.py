"""A real server that speaks S3 for the tests, from a PyPI package: nothing to install or to start by hand.

    with s3_bucket() as url:
        Storage(f"{url}/folder")

It listens on 127.0.0.1 at a port of the system's choice; child processes find it by the environment. `faulty_bucket` is
the same with faults that a test turns on and off.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx
import pytest

from tests.waiting import PATIENCE_SECONDS, join

BUCKET = "expunge"


@contextmanager
def s3_bucket() -> Iterator[str]:
    """URL of an empty bucket; until the end `AWS_…` variables lead to its server."""
    with faulty_bucket() as store:
        yield store.url


class FaultyStore:
    """A server of one bucket that fails as told: `fault` is one of `FAULTS`, or "" for none.

    down               nobody listens
    empty              another bucket answers under the name, with nothing in it
    slow               every answer takes a second
    read-only          what would change something is forbidden
    refuses deletion   only deleting is forbidden
    keeps the deleted  deleting is answered as done, and is not
    """

    FAULTS: Final = ("down", "empty", "slow", "read-only", "refuses deletion", "keeps the deleted")

    def __init__(self) -> None:
        werkzeug = needed("moto.moto_server.werkzeug_app")
        self._app: Callable[..., Iterable[bytes]] = werkzeug.DomainDispatcherApplication(werkzeug.create_backend_app)
        self._handler = werkzeug.MotoRequestHandler
        self._port = 0
        self.url = f"s3://{BUCKET}"
        self.fault = ""

    def start(self) -> None:
        """Listen; the same port after a stop."""
        make_server = needed("werkzeug.serving").make_server
        self._server = make_server("127.0.0.1", self._port, self, threaded=True, request_handler=self._handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="object store", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more; what is stored stays."""
        self._server.shutdown()
        self._server.server_close()
        join(self._thread)

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    @contextmanager
    def failing(self, fault: str) -> Iterator[None]:
        """The fault while the block runs."""
        if fault == "down":
            self.stop()
        self.fault = fault
        try:
            yield
        finally:
            self.fault = ""
            if fault == "down":
                self.start()

    def objects(self) -> dict[str, bytes]:
        """Everything in the bucket, by name."""
        files = needed("s3fs").S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        return {str(name).partition("/")[2]: bytes(files.cat_file(name)) for name in files.find(BUCKET)}

    def __call__(self, request: dict[str, Any], answer: Callable[..., Any]) -> Iterable[bytes]:
        """One request, as WSGI has it."""
        method, fault = request["REQUEST_METHOD"], self.fault
        deletes = method == "DELETE" or (method == "POST" and "delete" in request.get("QUERY_STRING", ""))
        if fault == "slow":
            time.sleep(1.0)
        elif fault == "empty":
            for name in request.keys() & {"PATH_INFO", "RAW_URI", "REQUEST_URI"}:
                request[name] = request[name].replace(f"/{BUCKET}", f"/{BUCKET}-of-nobody", 1)
        elif fault == "keeps the deleted" and deletes:
            answer("204 No Content", [("Content-Length", "0")])
            return [b""]
        elif (fault == "read-only" and method not in ("GET", "HEAD")) or (fault == "refuses deletion" and deletes):
            said = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            answer("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(said)))])
            return [said]
        return self._app(request, answer)


@contextmanager
def faulty_bucket() -> Iterator[FaultyStore]:
    """A store with an empty bucket; until the end `AWS_…` variables lead to it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = FaultyStore()
    store.start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_ENDPOINT_URL", store.endpoint)
        httpx.post(
            f"{store.endpoint}/moto-api/reset", timeout=PATIENCE_SECONDS
        ).raise_for_status()  # what an earlier server here held
        files = needed("s3fs").S3FileSystem(skip_instance_cache=True)
        files.mkdir(BUCKET)
        files.mkdir(f"{BUCKET}-of-nobody")
        yield store
    store.stop()


def needed(name: str) -> Any:
    """A module of the extra `dev`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"Needs {name.partition('.')[0]}: run pip install -e '.[dev]'.")
