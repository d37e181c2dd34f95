"""A real Prometheus for as long as a test needs one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from service.launch import free_ports
from tests.waiting import PATIENCE_SECONDS, wait_until


@contextmanager
def prometheus(path: str, folder: Path, config: dict[str, object]) -> Iterator[str]:
    """The program at `path` with `config`, its files in `folder`; gives its API's address once it answers queries."""
    (port,) = free_ports(1)
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    command = [
        path, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip

    def ready() -> bool:
        # it listens before it is ready, and answers 503 in plain text until then
        try:
            return httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=PATIENCE_SECONDS).is_success
        except httpx.TransportError:
            return False

    process = subprocess.Popen(command)
    try:
        wait_until(ready, "Prometheus to be ready")
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)
