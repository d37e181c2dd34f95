"""What a run rests on is changed in its middle: the policy, the recipe, the data.

A certificate speaks of what was announced and used, not of what the files say when it is written.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tests.faults.bench import Bench
from tests.faults.history import data_digest
from unlearning.recipes import load_recipe

POLICY_POINTS: Final = ("claimed", "unlearning.references_built", "auditing.stored", "purging.end")
DATA_POINTS: Final = ("unlearning.references_built", "rerun.end", "deploying.end", "purging.image_destroyed")


def policy_edited(bench: Bench, point: str) -> None:
    """The policy's file is edited while the worker is dead at the point: the run stays bound to the one announced."""
    request_ids = bench.file(bench.next_person())
    with _edited(bench, point, request_ids, Path(bench.settings.policy), {"name": "edited", "cost_share_max": 0.02}):
        bench.complete(request_ids, most_approvals=1)
        bench.stop_worker()


def recipe_edited(bench: Bench, point: str, seconds: float = 30.0) -> None:
    """The recipe's file is edited once the candidate is made, and later it is as before.

    Meanwhile the run goes on where it needs the recipe no more, or asks for help: no model is made by another recipe
    than the one in service was. The certificate names the recipe that made the candidate.
    """
    expected = load_recipe(bench.settings.recipe).digest
    (request_id,) = bench.file(bench.next_person())
    with _edited(bench, point, [request_id], Path(bench.settings.recipe), {"learning_rate": 0.05}):
        bench.start_worker()
        bench.let_work([request_id], seconds)
        bench.stop_worker()
    bench.complete([request_id], most_approvals=1)
    bench.stop_worker()
    named = _predicate(bench, request_id)["procedure"]["recipe_digest"]
    if named != expected:
        bench.tally.violations.append("a certificate names another recipe than the one its candidate was made by")


@contextmanager
def _edited(bench: Bench, point: str, request_ids: list[str], file: Path, changes: dict[str, Any]) -> Iterator[None]:
    """From the worker's death at the point on the file is another one while the block runs."""
    before = file.read_text()
    if not bench.die_at(point, request_ids):
        bench.tally.violations.append(f"the run never passed {point}")
    file.write_text(json.dumps(json.loads(before) | changes))
    bench.tally.kills[f"{file.stem} edited in the middle of a run"] += 1
    try:
        yield
    finally:
        file.write_text(before)


def image_added(bench: Bench, point: str) -> None:
    """One more image of the person comes into the folder while the worker is dead at the point: it goes, and counts."""
    person, data = bench.next_person(), bench.settings.data_folder
    (request_id,) = bench.file(person)
    if not bench.die_at(point, [request_id]):
        bench.tally.violations.append(f"the run never passed {point}")
    with (data / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    other = next(row for row in rows if row["user_id"] != person.user_id and row["split"] == "train")
    name = f"images/{bench.rng.randbytes(8).hex()}.png"
    (data / name).write_bytes((data / other["file_name"]).read_bytes() + bench.rng.randbytes(64))
    with (data / "metadata.csv").open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow([name, person.user_id, other["label"], "train"])
    bench.tally.kills["an image added in the middle of a run"] += 1
    if point != "purging.image_destroyed":
        bench.changed_data.add(data_digest(data))
    needles = (*person.needles, Path(name).stem.encode())
    bench.filed[request_id] = replace(person, needles=needles, n_images=person.n_images + 1)
    bench.complete([request_id], most_approvals=1)
    bench.stop_worker()


def _predicate(bench: Bench, request_id: str) -> dict[str, Any]:
    certificate = bench.client.get(f"/v1/erasure-requests/{request_id}/certificate").raise_for_status().json()
    found: dict[str, Any] = json.loads(base64.b64decode(certificate["envelope"]["payload"]))["predicate"]
    return found
