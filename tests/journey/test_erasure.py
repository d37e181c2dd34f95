"""Over HTTP, with real processes: a person is erased, or nothing was held, or the worker dies on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlmodel import select

from audit.proof.certificate import verify
from audit.proof.envelope import read_public_keys
from service.context import LINE, Context
from service.launch import environment
from service.requests.data_folder import MISSING
from service.store.engine import reading, session
from service.store.tables import (
    Attempt,
    CertificateRecord,
    LogLeaf,
    ModelVersion,
    RequestEvent,
    ServingWorker,
    WorkerLease,
)
from tests.journey.conftest import Service, copy_of, starting
from tests.processes import is_alive
from unlearning.faces import read_metadata

pytestmark = pytest.mark.journey

KILLED_AT = ("unlearning.references", "rerun.end", "deploying.end", "purging.end")


@pytest.fixture(scope="module")
def served(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the tests that leave its data and model as they are."""
    with starting(copy_of(tiny_home, tmp_path_factory.mktemp("served") / "home")) as start:
        yield start()


def train_person(service: Service) -> str:
    """Somebody the model learned from."""
    return next(row.user_id for row in read_metadata(service.settings.data_folder) if row.split == "train")


def check_erased(service: Service, request_id: str, person: str) -> None:
    """Everything `completed` promises, looked at from the outside."""
    settings = service.settings
    request = service.request(request_id)
    assert (request["state"], request["outcome"]) == ("completed", "erased")
    assert all(row.user_id != person for row in read_metadata(settings.data_folder))
    context = Context.open(settings)
    with reading(context.engine) as s:
        versions = list(s.exec(select(ModelVersion)))
        completions = s.exec(select(RequestEvent).where(RequestEvent.to_state == "completed")).all()
        certificates = s.exec(select(CertificateRecord).where(CertificateRecord.request_id == request_id)).all()
        workers = [row for row in s.exec(select(ServingWorker)) if is_alive(row.pid)]
        verdicts = [row.verdict for row in s.exec(select(Attempt).order_by(Attempt.step))]
    assert len(completions) == 1
    assert len(certificates) == 1
    assert verdicts[-1] == "PASSED"
    assert verdicts[0] == "FAILED"
    (active,) = [row for row in versions if row.state == "active"]
    assert all(row.state == "destroyed" for row in versions if row is not active)
    assert [path.stem for path in settings.models_folder.glob("*")] == [active.digest]
    assert {row.acknowledged_generation for row in workers} == {active.generation}
    certificate = service.client.get(f"/v1/certificates/{request['certificate_id']}").json()
    key = read_public_keys((settings.keys_folder / "signing.pub").read_bytes())
    result = verify(certificate, public_key=key, weights_path=settings.models_folder / f"{active.digest}.safetensors")
    assert result.valid, result.checks
    assert result.erased
    context.engine.dispose()


def test_a_person_is_erased_while_predictions_go_on(running: Callable[..., Service]) -> None:
    service = running()
    person = train_person(service)
    rows = read_metadata(service.settings.data_folder)
    pictures = [(service.settings.data_folder / row.file_name).read_bytes() for row in rows if row.split == "test"]
    before = serving_processes(service)
    (receipt,) = service.file(person)
    generations: list[int] = []
    while service.request(receipt["id"])["state"] != "completed":
        service.processes.check()
        for picture in pictures:
            answer = service.client.post("/v1/predictions", content=picture, headers={"Content-Type": "image/png"})
            assert answer.status_code == 200, answer.text
            generations.append(answer.json()["generation"])
    assert generations[0] == 1
    assert sorted(generations) == generations
    check_erased(service, receipt["id"], person)
    assert serving_processes(service) == before
    states = [event["to_state"] for event in service.request(receipt["id"])["events"]]
    assert states[0] == "queued"
    assert states[-4:] == ["auditing", "deploying", "purging", "completed"]


def serving_processes(service: Service) -> set[int]:
    """Process ids that serve."""
    context = Context.open(service.settings)
    with reading(context.engine) as s:
        return {row.pid for row in s.exec(select(ServingWorker)) if is_alive(row.pid)}


def test_an_unknown_person_completes_with_no_data_held(served: Service) -> None:
    (receipt,) = served.file("nobody-we-know")
    request = served.completed(receipt["id"])
    assert (request["state"], request["outcome"]) == ("completed", "no_data_held")
    certificate = served.client.get(f"/v1/certificates/{request['certificate_id']}").json()
    assert verify(certificate).valid


def test_requests_wait_while_the_data_folder_is_away_and_go_on_when_it_is_back(
    running: Callable[..., Service],
) -> None:
    service = running()
    folder = service.settings.data_folder
    tested = next(row.user_id for row in read_metadata(folder) if row.split == "test")
    context = Context.open(service.settings)

    def has_counted() -> bool:  # else the call would be held as a mass deletion of nobody knows how many
        with reading(context.engine) as s:
            return bool((lease := s.get(WorkerLease, LINE)) and lease.n_subjects)

    service.processes.wait_until(has_counted, "the worker to count the people", 120)
    context.engine.dispose()
    folder.rename(folder.with_name("away"))
    receipts = service.file(tested, "nobody-we-know")
    waiting = [service.completed(receipt["id"]) for receipt in receipts]
    assert {request["state"] for request in waiting} == {"needs_attention"}
    assert {request["attention_reason"] for request in waiting} == {MISSING}
    folder.with_name("away").rename(folder)
    service.processes.wait_until(
        lambda: all(service.request(receipt["id"])["state"] == "completed" for receipt in receipts),
        "both to complete",
        120,
    )
    assert [service.request(receipt["id"])["outcome"] for receipt in receipts] == ["erased", "no_data_held"]


def test_several_people_share_a_run(running: Callable[..., Service]) -> None:
    service = running()
    people = sorted({row.user_id for row in read_metadata(service.settings.data_folder) if row.split == "train"})[:2]
    receipts = service.file(*people, "nobody-we-know")
    ends = [service.completed(receipt["id"]) for receipt in receipts]
    assert [end["outcome"] for end in ends] == ["erased", "erased", "no_data_held"]
    assert len({end["certificate_id"] for end in ends}) == 3


def test_a_killed_worker_s_request_completes_exactly_once(running: Callable[..., Service]) -> None:
    """One request, a SIGKILL in each stage of workers as they are started; `tests/faults` has every point."""
    service = running(EXPUNGE_FAIL_AT=KILLED_AT[0], EXPUNGE_RERUN_SHARE="1")
    person = train_person(service)
    (receipt,) = service.file(person)
    for following in (*KILLED_AT[1:], ""):
        worker = service.processes.worker
        assert worker is not None
        assert worker.wait(240) == -signal.SIGKILL
        service.processes.start_worker(EXPUNGE_FAIL_AT=following, EXPUNGE_RERUN_SHARE="1")
    service.completed(receipt["id"])
    check_erased(service, receipt["id"], person)
    certificate = service.client.get(f"/v1/certificates/{service.request(receipt['id'])['certificate_id']}").json()
    assert {check.name: check.passed for check in verify(certificate).checks}["re-run"] is True


def test_a_candidate_that_does_not_come_out_again_is_not_deployed(running: Callable[..., Service]) -> None:
    """The worker dies before it makes the candidate again; then somebody changes the seed it says it used."""
    service = running(EXPUNGE_FAIL_AT="rerun.start", EXPUNGE_RERUN_SHARE="1")
    (receipt,) = service.file(train_person(service))
    worker = service.processes.worker
    assert worker is not None
    assert worker.wait(240) == -signal.SIGKILL
    context = Context.open(service.settings)
    with session(context.engine) as s:
        attempt = s.exec(select(Attempt).where(Attempt.verdict == "PASSED")).one()
        attempt.seed += 1
        s.add(attempt)
        s.commit()
    service.processes.start_worker(EXPUNGE_RERUN_SHARE="1")
    request = service.completed(receipt["id"])
    assert request["state"] == "needs_attention"
    assert "other weights; nothing was deployed" in request["attention_reason"]
    with reading(context.engine) as s:
        assert [row.state for row in s.exec(select(ModelVersion))] == ["active"]
        kinds = list(s.exec(select(LogLeaf.kind).order_by(LogLeaf.index)))
    assert "rerun" in kinds
    assert "run" not in kinds
    assert not list(service.settings.runs_folder.iterdir())
    context.engine.dispose()


def test_the_signing_key_is_rotated_while_the_service_runs(served: Service) -> None:
    (first,) = served.client.get("/v1/keys").json()["keys"]
    subprocess.run([sys.executable, "-m", "service.cli", "keys", "rotate-signing"], env=environment(served.settings),
                   check=True, capture_output=True, timeout=60)  # fmt: skip
    now, before = served.client.get("/v1/keys").json()["keys"]
    assert before["pem"] == first["pem"]
    (receipt,) = served.file("nobody-we-know")
    request = served.completed(receipt["id"])
    certificate = served.client.get(f"/v1/certificates/{request['certificate_id']}").json()
    assert verify(certificate, public_key=read_public_keys(now["pem"])).valid
    assert not verify(certificate, public_key=read_public_keys(before["pem"])).valid


def test_a_second_worker_refuses(served: Service) -> None:
    first = served.processes.worker
    served.processes.start_worker()
    second, served.processes.worker = served.processes.worker, first
    assert second is not None
    assert second.wait(120) == 1
    log = (served.settings.home / "logs" / "worker.log").read_text()
    assert "Expected no other worker on model line 'default', found process" in log


def test_the_console_shows_what_happens(served: Service) -> None:
    (receipt,) = served.file("nobody-we-know")
    served.completed(receipt["id"])
    url = f"http://127.0.0.1:{served.settings.console_port}"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, auth=("operator", "wrong")).status_code == 401
    for path in ("/", "/models", f"/requests/{receipt['id']}"):
        page = httpx.get(url + path, auth=("operator", served.key))
        assert page.status_code == 200
        assert "nobody-we-know" not in page.text
    assert receipt["id"][:8] in httpx.get(url, auth=("operator", served.key)).text
    metrics = httpx.get(f"{url}/metrics").text
    assert 'expunge_requests{state="completed"}' in metrics
