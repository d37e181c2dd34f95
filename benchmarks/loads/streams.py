"""Ways to erase, each with its own copy of the same people, and what the processes of each take.

A way is plain retraining (`Retraining`) or a build of this program, run from a checkout by its commands and its HTTP
interface alone (`Service`), so that builds of other commits can be run too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from audit.proof.envelope import read_payload
from benchmarks.loads.processor import Account
from service.launch import free_ports

ROOT = Path(__file__).resolve().parents[2]
FORMER = "9fbe51c2d0fa49222a51ce7764359dbfa9f30f60"
RECIPE = "synthetic_small"
ENDED = ("completed", "needs_attention", "rejected", "cancelled")
POLL_SECONDS = 0.5
REST_SECONDS = 10.0
"""What a service takes while it has nothing to do is measured for so long at least before each erasure."""


@dataclass(frozen=True)
class Way:
    """A way to erase.

    Attributes:
        code: checkout that it is run from; None for plain retraining.
        settings: variables of its environment.
        ahead: whether references are built before the first request.
        subjects: whose; none: those of everybody.
        renew: whether references are renewed after each.
    """

    name: str
    code: Path | None
    settings: dict[str, str] = field(default_factory=dict)
    ahead: bool = False
    subjects: tuple[str, ...] = ()
    renew: bool = False


class Kept:
    """Figures as files of a folder, one for each thing that was measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> dict[str, Any] | None:
        """What was kept under a name."""
        with suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
            return found
        return None

    def write(self, name: str, figures: dict[str, Any]) -> None:
        """Keep figures under a name."""
        path = self.folder / f"{name}.json"
        path.with_suffix(".new").write_text(json.dumps(figures, indent=1) + "\n")
        path.with_suffix(".new").replace(path)


class Retraining:
    """Plain retraining on one data folder."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.account = Account()
        self._folder = folder
        if not folder.exists():
            shutil.copytree(data, folder / "data")

    def erase(self, gone: Sequence[str]) -> dict[str, Any]:
        """One process that trains without these people."""
        command = [
            sys.executable, "-m", "benchmarks.contenders.retraining",
            str(self._folder / "data"), RECIPE, str(len(gone)), str(self._folder / "model.safetensors"),
        ]  # fmt: skip
        before, began = self.account.seconds(), time.monotonic()
        printed = self.account.run(command, cwd=ROOT, env=dict(os.environ), given="\n".join(gone))
        return {
            "request_seconds": self.account.seconds() - before,
            "training_seconds": float(printed.split()[-1]),
            "wall_seconds": time.monotonic() - began,
            "state": "completed",
        }


class Service:
    """A build's service on a home of its own: serving processes and worker."""

    def __init__(self, way: Way, folder: Path, data: Path, kept: Kept) -> None:
        if way.code is None:
            raise ValueError("Expected a build.")
        self.account, self._way, self._code, self._kept = Account(), way, way.code, kept
        self._folder, self._home, self._data = folder, folder / "home", data
        own = way.code / ".venv" / "bin" / "python"
        self._python = str(own) if own.exists() else sys.executable
        port, console_port = free_ports(2)
        self._url, self._console = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{console_port}"
        given = {
            "HOME": self._home, "RECIPE": RECIPE, "DEVICE": "cpu", "PORT": port, "CONSOLE_PORT": console_port,
            "API_WORKERS": 1, "REBUILD_REFERENCES": "off", "LOG_FORMAT": "json",
        }  # fmt: skip
        others = {name: value for name, value in os.environ.items() if not name.upper().startswith("EXPUNGE_")}
        self._env = {
            **others, "PYTHONPATH": str(way.code), "PYTHONUNBUFFERED": "1", "BENTOML_DO_NOT_TRACK": "True",
            "COLUMNS": "200", **{f"EXPUNGE_{name}": str(value) for name, value in given.items()}, **way.settings,
        }  # fmt: skip
        self._client = httpx.Client(base_url=self._url, timeout=60)
        self._rest = (0.0, 0.0)

    def __enter__(self) -> Service:
        """Prepared, if it is not yet, and ready for requests."""
        name = f"{self._way.name}-ahead"
        key_file = self._folder / "key"
        if self._kept.read(name) is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            shutil.copytree(self._data, self._home / "data")
            self._expunge("train")
            scopes = [part for scope in ("erasure:write", "erasure:read", "audit:read") for part in ("--scope", scope)]
            key_file.write_text(self._expunge("keys", "create", "benchmark", *scopes).split()[-1])
            before, began = self.account.seconds(), time.monotonic()
            if self._way.ahead:
                self._expunge("references", "build", *self._way.subjects)
            seconds = self.account.seconds() - before
            self._kept.write(name, {"seconds": seconds, "wall_seconds": time.monotonic() - began})
        self._client.headers["Authorization"] = f"Bearer {key_file.read_text()}"
        for part in ("serve", "worker"):
            command = [self._python, "-m", "service.cli", part]
            self.account.start(command, cwd=self._code, env=self._env, log=self._folder / f"{part}.log")
        try:
            self._wait_ready()
        except BaseException:
            self.account.stop()
            raise
        self._rest = self.account.seconds(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self.account.stop()

    def erase(self, person: str) -> dict[str, Any]:
        """One erasure: its request, and what is renewed after it."""
        resting = self._rested()
        before, began = self.account.seconds(), time.monotonic()
        answer = self._client.post("/v1/erasure-requests", json={"user_ids": [person]})
        if answer.status_code != httpx.codes.ACCEPTED:
            raise RuntimeError(f"Expected 202 of the request, got {answer.status_code}: {answer.text}")
        number = answer.json()["requests"][0]["id"]
        request, phases, last = self._follow(number, before, began)
        found = {
            "request_seconds": last - before,
            "wall_seconds": time.monotonic() - began,
            "phases": phases,
            "state": request["state"],
            "reason": request.get("attention_reason"),
            **self._certified(request.get("certificate_id")),
        }
        if self._way.renew:
            before, began = last, time.monotonic()
            self._expunge("references", "refresh")
            found["renewal_seconds"] = self.account.seconds() - before
            found["renewal_wall_seconds"] = time.monotonic() - began
        self._rest = self.account.seconds(), time.monotonic()
        return found | resting

    def settle(self) -> None:
        """Wait until no request is open that an ended benchmark left behind."""
        listed = self._client.get("/v1/erasure-requests").raise_for_status().json()
        for request in listed.get("requests", listed.get("items", [])):
            if request["state"] not in ENDED:
                self._follow(request["id"], self.account.seconds(), time.monotonic())

    def _follow(self, number: str, before: float, began: float) -> tuple[dict[str, Any], dict[str, list[float]], float]:
        """The request when it has ended, what each of its phases took and how long, and the account's seconds then."""
        phases: dict[str, list[float]] = {}
        while True:
            time.sleep(POLL_SECONDS)
            request: dict[str, Any] = self._client.get(f"/v1/erasure-requests/{number}").raise_for_status().json()
            seconds, at = self.account.seconds(), time.monotonic()
            progress = re.sub(r"[\d/]+", "", request.get("progress") or "").strip()
            phase = f"{request['state']}: {progress}" if progress else request["state"]
            taken, lasted = phases.get(phase, [0.0, 0.0])
            phases[phase] = [taken + seconds - before, lasted + at - began]
            before, began = seconds, at
            if request["state"] in ENDED:
                return request, phases, seconds
            if not self.account.alive():
                raise RuntimeError(
                    f"Expected the service of {self._way.name} to go on; see its logs in {self._folder}."
                )

    def _rested(self) -> dict[str, float]:
        """What the service took since the last erasure, in which it had nothing to do."""
        seconds, at = self._rest
        time.sleep(max(0.0, at + REST_SECONDS - time.monotonic()))
        return {"idle_seconds": self.account.seconds() - seconds, "idle_wall_seconds": time.monotonic() - at}

    def _certified(self, certificate: str | None) -> dict[str, Any]:
        """What the certificate says of method and price."""
        if certificate is None:
            return {}
        file = self._client.get(f"/v1/certificates/{certificate}").raise_for_status().json()
        predicate = json.loads(read_payload(file["envelope"]))["predicate"]
        return {"method": predicate["procedure"]["method"], "cost": predicate["cost"]}

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 300
        for url in (f"{self._url}/v1/health/ready", f"{self._console}/health"):
            while True:
                with suppress(httpx.HTTPError):
                    if httpx.get(url, timeout=5).is_success:
                        break
                if time.monotonic() > deadline or not self.account.alive():
                    raise RuntimeError(f"Expected the service of {self._way.name} at {url}; see {self._folder}.")
                time.sleep(0.2)

    def _expunge(self, *arguments: str) -> str:
        return self.account.run([self._python, "-m", "service.cli", *arguments], cwd=self._code, env=self._env)


def former_code(folder: Path) -> Path:
    """A copy of the former build's files."""
    place = folder / "former-code"
    if not (place / "service").exists():
        archive = folder / "former.tar"
        done = subprocess.run(
            ["git", "-C", str(ROOT), "archive", "-o", str(archive), FORMER], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"Needs commit {FORMER[:7]} of a whole clone (git fetch --unshallow); git says: {done.stderr}")
        with tarfile.open(archive) as files:
            files.extractall(place, filter="data")
        archive.unlink()
    return place


def measure(
    ways: Sequence[Way], people: Sequence[str], folder: Path, kept: Kept, n_of: Mapping[str, int], *, data: Path
) -> None:
    """Every way's erasures in turn, each written down when it ended.

    Args:
        n_of: how many of the people each way erases.
        data: data folder that each way gets a copy of.
    """
    with ExitStack() as stack:
        retraining = Retraining(folder / "retraining", data)
        services = {}
        for way in ways:
            if way.code is not None and any(kept.read(each) is None for each in _names(way, n_of[way.name])):
                services[way.name] = stack.enter_context(Service(way, folder / way.name, data, kept))
                services[way.name].settle()
        for number, person in enumerate(people, 1):
            for way in ways:
                name = f"{way.name}-{number:02d}"
                if number > n_of[way.name] or kept.read(name) is not None:
                    continue
                if kept.read(f"{name}-begun") is None:
                    kept.write(f"{name}-begun", {})
                    service = services.get(way.name)
                    found = service.erase(person) if service else retraining.erase(people[:number])
                else:
                    found = {"interrupted": True}
                kept.write(name, found)
                print(f"{time.strftime('%H:%M:%S')} {name} {told(found)}", flush=True)


def erased_by(way: Way, n: int, kept: Kept) -> list[dict[str, Any]]:
    """Figures of a way's erasures, in their order."""
    return [found for name in _names(way, n) if (found := kept.read(name)) is not None]


def _names(way: Way, n: int) -> list[str]:
    return [f"{way.name}-{number:02d}" for number in range(1, n + 1)]


def told(found: dict[str, Any]) -> str:
    """One erasure in a line."""
    if "interrupted" in found:
        return "was interrupted"
    renewal = f", renewal {found['renewal_seconds']:.1f} s" if "renewal_seconds" in found else ""
    return f"{found['state']} {found.get('method', '')}: {found['request_seconds']:.1f} s{renewal}"
