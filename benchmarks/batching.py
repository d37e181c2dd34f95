"""A thousand requests filed in one call against one request: the time until all are completed, certified, purged.

    python benchmarks/batching.py [--quick] [--json FILE] [--people N] [--batch N] [--turns N]

The whole service as its users have it: serving processes, worker, HTTP. Both times are taken on copies of one home of
drawn people, all of them known and learned from, from before the call until the last request is completed. Nothing is
prepared: neither has a reference bank when it is filed. One person is judged by the bank of their block, a batch over
several blocks by a bank without exactly its people; either is built in the run, from as many models. So the work that
is one for a batch (two banks, unlearning, audit, swap) is counted alike, and what grows with the number (intake, moves
of state, certificates, image files) is what the ratio shows. With the block's bank built ahead one request is far
quicker and a batch over several blocks is not; that is not what is measured here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

# A script's own folder is the first place Python looks for modules, and ours holds an `audit.py`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import httpx  # noqa: E402

from service.context import Context  # noqa: E402
from service.keys import api_keys  # noqa: E402
from service.launch import Processes, free_ports  # noqa: E402
from service.settings import Settings  # noqa: E402
from service.store.engine import session  # noqa: E402
from service.training.data import pack_images, recipe_of  # noqa: E402
from service.training.jobs import release_processes  # noqa: E402
from service.training.production import train_production  # noqa: E402
from unlearning.faces import read_metadata  # noqa: E402
from unlearning.faces.sources import synthetic  # noqa: E402

N_IMAGES = 2
RECIPE = {
    "name": "batching", "architecture": "small_resnet", "image_size": [16, 16], "channels": 3, "width": 8, "epochs": 4,
    "batch_size": 128, "learning_rate": 0.1, "flip": True, "dtype": "float32",
}  # fmt: skip
POLICY = {
    "name": "batching", "n_models": 16, "retain_ratio_min": 0.0, "test_ratio_min": 0.0, "exchangeability_alpha": 0.0,
    "forgetting_ratio_min": 0.0, "cost_share_max": 0.01, "ladder": ["finetune", "retrain"], "retrain_attempts": 1,
}  # fmt: skip
"""Fine-tuning fails by its cost and retraining passes, in both runs: the ladder is walked to its end."""


def make_home(home: Path, n_people: int) -> None:
    """Data, a model, a key; the images packed, as in a service that has run for a while."""
    home.mkdir()
    (home / "recipe.json").write_text(json.dumps(RECIPE))
    (home / "policy.json").write_text(json.dumps(POLICY))
    settings = settings_of(home)
    synthetic.write_folder(
        settings.data_folder, n_subjects=n_people, images_per_subject=N_IMAGES, size=(16, 16), seed=5
    )
    context = Context.open(settings)
    train_production(context, seed=0)
    pack_images(settings, recipe_of(context))
    release_processes()
    with session(context.engine) as s:
        _, token = api_keys.create_key(s, name="operator", scopes=api_keys.SCOPES, now=context.now(), key_id="operator")
        s.commit()
    (home / "operator.key").write_text(token)
    context.engine.dispose()


def settings_of(home: Path) -> Settings:
    """Settings of the home or of a copy of it."""
    ports = free_ports(2)
    return Settings(
        home=home, recipe=str(home / "recipe.json"), policy=str(home / "policy.json"), port=ports[0],
        console_port=ports[1], log_format="json", rebuild_references="off",
    )  # fmt: skip


@contextmanager
def served(home: Path) -> Iterator[httpx.Client]:
    """The service on a home, and a client of it, once it answers."""
    settings = settings_of(home)
    shutil.rmtree(settings.data_folder / ".packed", ignore_errors=True)  # notes where the packs of the original lie
    key = (home / "operator.key").read_text()
    headers = {"Authorization": f"Bearer {key}"}
    with (
        Processes(settings) as processes,
        httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", headers=headers, timeout=60) as client,
    ):
        processes.start_serving()
        processes.start_worker()

        def ready() -> bool:
            try:
                lines = client.get("/v1/models").json()["lines"]
            except httpx.TransportError:
                return False
            serving = lines[0]["serving"] if lines else []
            return sum(row["acknowledged_generation"] >= 1 for row in serving) >= settings.api_workers

        processes.wait_until(ready, "the serving processes", 180)
        log = settings.home / "logs" / "worker.log"
        processes.wait_until(lambda: "worker.ready" in log.read_text(), "the worker", 180)
        yield client


def timed(original: Path, home: Path, people: list[str]) -> dict[str, Any]:
    """File these people in one call; seconds until the last is completed, by stage."""
    shutil.copytree(original, home)
    with served(home) as client:
        began = time.perf_counter()
        answer = client.post("/v1/erasure-requests", json={"user_ids": people})
        accepted = time.perf_counter() - began
        answer.raise_for_status()
        batch, last = answer.json()["batch_id"], answer.json()["requests"][-1]["id"]
        while client.get(f"/v1/erasure-requests/{last}").json()["state"] not in ("completed", "needs_attention"):
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        states: dict[str, int] = {}
        cursor = None
        while True:
            query = {"batch_id": batch, "limit": 100} | ({"cursor": cursor} if cursor else {})
            page = client.get("/v1/erasure-requests", params=query).raise_for_status().json()
            for request in page["requests"]:
                end = f"{request['state']}, {request['outcome']}"
                states[end] = states.get(end, 0) + 1
            if (cursor := page["next_cursor"]) is None:
                break
        events = client.get(f"/v1/erasure-requests/{last}").json()["events"]
    moments = [(datetime.fromisoformat(event["at"]), event["to_state"]) for event in events]
    stages: dict[str, float] = {}
    for (start, stage), (stop, _) in itertools.pairwise(moments):
        stages[stage] = stages.get(stage, 0.0) + (stop - start).total_seconds()
    shutil.rmtree(home)
    return {"seconds": seconds, "accepted_seconds": accepted, "ends": states, "stages": stages}


def main() -> None:
    """Take turns, print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="600 people, a batch of 100, one turn")
    parser.add_argument("--people", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    n_people, n_batch, n_turns = (600, 100, 1) if options.quick else (options.people, options.batch, options.turns)
    turns = []
    with tempfile.TemporaryDirectory(prefix="batching-") as folder:
        original = Path(folder) / "original"
        make_home(original, n_people)
        rows = read_metadata(original / "data")
        people = sorted({row.user_id for row in rows if row.split == "train"})
        for turn in range(n_turns):
            one = timed(original, Path(folder) / f"one-{turn}", people[turn : turn + 1])
            many = timed(original, Path(folder) / f"many-{turn}", people[:: max(1, len(people) // n_batch)][:n_batch])
            ratio = many["seconds"] / one["seconds"]
            turns.append({"one": one, "many": many, "ratio": ratio})
            print(f"turn {turn + 1}: one {one['seconds']:.1f} s, {n_batch} {many['seconds']:.1f} s, ratio {ratio:.2f}")
            for name, figures in (("one", one), (str(n_batch), many)):
                stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in figures["stages"].items())
                print(f"  {name}: accepted in {figures['accepted_seconds']:.2f} s, {stages}; {figures['ends']}")
    ratios = [turn["ratio"] for turn in turns]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); bar 1.5")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    if options.json:
        figures = {"n_people": n_people, "n_batch": n_batch, "turns": turns, "n_cores": os.cpu_count()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
