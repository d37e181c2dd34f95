"""Nothing is left of a person after completion, in raw bytes, in plain and in the spellings bytes hide in."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from service.context import Context
from tests.faults.bench import Bench, memory_folder
from tests.faults.watch import Person, found_in

CALLBACK = "https://127.0.0.1:9/told"  # nobody listens: the bodies, as they are signed and sent, stay in the database

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]


def hidden(person: Person) -> Person:
    """The needles, and each in hex and in base64 at its three alignments."""
    spelled = []
    for needle in person.needles:
        spelled += [needle.hex().encode(), json.dumps(needle.decode("latin-1"))[1:-1].encode()]
        for shift in range(3):
            digits = base64.b64encode(bytes(shift) + needle)
            spelled.append(digits[4 : len(digits) - 4])  # what does not depend on the neighbours
    return Person(person.user_id, (*person.needles, *spelled))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with (
        TemporaryDirectory(prefix="faults-", dir=memory_folder(), ignore_cleanup_errors=True) as name,
        Bench.running(Path(name), n_subjects=40, seed=6, api_workers=1, callback_allow="127.0.0.1") as bench,
    ):
        yield bench


def test_a_canary_is_nowhere_after_completion(bench: Bench) -> None:
    """Files of the home (database, WAL, DBOS's tables, logs, BentoML's home), TMPDIR, callbacks, metrics, answers."""
    person = bench.next_person()
    canary = hidden(person)
    bench.client.get(f"/v1/erasure-requests/{person.user_id}?batch_id={person.user_id}")  # as some will try
    answer = bench.client.post(
        "/v1/erasure-requests",
        json={"user_ids": [person.user_id], "callback_url": CALLBACK},
        headers={"Idempotency-Key": f"erase-{person.user_id}"},
    )
    assert answer.status_code == 202, answer.text
    (receipt,) = answer.json()["requests"]
    bench.filed[receipt["id"]] = person
    assert found_in(bench.places(), [person])  # the search finds what there is
    bench.finish([receipt["id"]])
    request = bench.request(receipt["id"])
    pages = [
        bench.client.get(f"/v1/certificates/{request['certificate_id']}").content,
        json.dumps(request).encode(),
    ]
    pages += [bench.client.get(path).content for path in ("/metrics", "/v1/models", "/v1/log/entries")]
    pages.append(bench.client.get(f"http://127.0.0.1:{bench.settings.console_port}/metrics").content)
    assert not [page for page in pages if any(needle in page for needle in canary.needles)]
    assert found_in(bench.places(), [canary]) == []
    bench.stop_worker()
    assert found_in(bench.places(), [canary]) == []
    assert bench.tally.violations == []


def test_a_failed_step_leaves_no_name_in_the_workflows_tables(bench: Bench) -> None:
    """An error of a library may quote a row of the data; what DBOS stores of a step's errors is kind and place."""
    person = bench.next_person()
    table = bench.settings.data_folder / "metadata.csv"
    whole = table.read_text()
    broken = "\n".join(line.replace(",train", ",test", 1) if person.user_id in line else line
                       for line in whole.splitlines()[:-1])  # fmt: skip
    first = next(line for line in broken.splitlines() if person.user_id in line)
    table.write_text(broken.replace(first, first.replace(",test", ",train"), 1) + "\n")  # one person, two splits
    (request_id,) = bench.file(person)
    bench.start_worker()
    bench.until(lambda: bench.request(request_id)["state"] == "needs_attention", "the run to stop")
    context = Context.open(bench.settings)
    context.engine.dispose()
    canary = hidden(Person(person.user_id, (person.user_id.encode(),)))
    held = {Path(path).name for path in found_in([bench.settings.home], [canary])}
    assert held <= {"metadata.csv", "expunge.db", "expunge.db-wal"}  # where the waiting request and the data are
    table.write_text(whole)
    bench.client.post(f"/v1/erasure-requests/{request_id}/approve", json={"reason": "Mended."}).raise_for_status()
    bench.finish([request_id])
    assert found_in(bench.places(), [canary]) == []
    assert bench.tally.violations == []
