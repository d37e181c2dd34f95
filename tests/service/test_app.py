"""The BentoML module, in processes of its own: importing BentoML changes a process. The rest is a journey."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.fixture
def run(tmp_path):
    """Runs a program that may import the app, as the parent process would; gives its words."""

    def start(program: str) -> list[str]:
        environment = {**os.environ, "EXPUNGE_HOME": str(tmp_path / "home"), "EXPUNGE_API_WORKERS": "3"}
        environment |= {"BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.split()

    return start


def test_the_parent_process_opens_nothing(run, tmp_path):
    found = run("import sys, service.app; print('torch' in sys.modules, service.app.Expunge.name)")
    assert found == ["False", "expunge"]
    assert not (tmp_path / "home").exists()


def test_what_bentoml_would_do_per_request_is_off(run):
    program = """if True:
        from service.app import Expunge
        config = Expunge.config
        print(config["workers"], config["metrics"]["enabled"], config["logging"]["access"]["enabled"],
              config["tracing"]["excluded_urls"], config["threads"])
    """
    assert run(program) == ["3", "False", "False", "['.*']", "1"]


def test_one_connection_is_accepted_at_a_time(run):
    """Two loops on one socket, as in two processes: without this, the first one awake takes every connection."""
    program = """if True:
        import asyncio, socket
        from service.app import _accept_one_at_a_time

        async def main():
            loop = asyncio.get_running_loop()
            taken = []
            original = loop._accept_connection
            loop._accept_connection = lambda *arguments: (taken.append(arguments[4]), original(*arguments))
            _accept_one_at_a_time(loop)
            server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, backlog=50)
            port = server.sockets[0].getsockname()[1]
            for _ in range(3):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await reader.read() == b""
                writer.close()
            server.close()
            print(*set(taken))

        asyncio.run(main())
    """
    assert run(program) == ["1"]
