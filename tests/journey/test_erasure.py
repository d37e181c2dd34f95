"""Over HTTP, with real processes: a person is erased, or nothing was held, or the worker dies meanwhile."""

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
from service.settings import Settings
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
from tests.journey.conftest import ENDS, RUN_SECONDS, Service, copy_of, starting
from tests.processes import is_alive
from tests.waiting import PATIENCE_SECONDS
from unlearning.faces import read_metadata

pytestmark = [pytest.mark.journey, pytest.mark.timeout(1800)]  # more than all its patience

KILLED_AT = ("unlearning.references", "rerun.end", "deploying.end", "purging.end")


@pytest.fixture(scope="module")
def served(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the tests that leave its model and those whom it learned from as they are."""
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
        of_request = RequestEvent.request_id == request_id, RequestEvent.to_state == "completed"
        completions = s.exec(select(RequestEvent).where(*of_request)).all()
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
    certificate = service.client.get(f"/v1/certificates/{request['certificate_id']}").raise_for_status().json()
    key = read_public_keys((settings.keys_folder / "signing.pub").read_bytes())
    result = verify(certificate, public_key=key, weights_path=settings.models_folder / f"{active.digest}.safetensors")
    assert result.valid, result.checks
    assert result.erased
    context.engine.dispose()


@pytest.fixture
def as_installed(tiny_settings: Settings) -> Iterator[Service]:
    """A service with two serving processes and as many training processes as the machine allows."""
    with starting(tiny_settings.model_copy(update={"api_workers": 2, "jobs": 0})) as start:
        yield start()


def test_several_people_are_erased_in_one_run_while_predictions_go_on(as_installed: Service) -> None:
    service = as_installed
    rows = read_metadata(service.settings.data_folder)
    people = sorted({row.user_id for row in rows if row.split == "train"})[:2]
    images = [(service.settings.data_folder / row.file_name).read_bytes() for row in rows if row.split == "test"]
    before = serving_processes(service)
    receipts = service.file(*people, "nobody-we-know")
    generations: list[int] = []

    def ended() -> bool:
        for image in images:
            answer = service.client.post("/v1/predictions", content=image, headers={"Content-Type": "image/png"})
            assert answer.status_code == 200, answer.text
            generations.append(answer.json()["generation"])
        return all(service.request(receipt["id"])["state"] in ENDS for receipt in receipts)

    service.processes.wait_until(ended, "the requests to end while predictions go on", RUN_SECONDS)
    ends = [service.request(receipt["id"]) for receipt in receipts]
    assert [end["state"] for end in ends] == ["completed"] * 3
    assert [end["outcome"] for end in ends] == ["erased", "erased", "no_data_held"]
    assert len({end["certificate_id"] for end in ends}) == 3
    assert generations[0] == 1
    assert sorted(generations) == generations
    assert set(generations) <= {1, 2}  # both in one run
    assert serving_processes(service) == before
    for end, person in zip(ends[:2], people, strict=True):
        check_erased(service, end["id"], person)
        states = [event["to_state"] for event in end["events"]]
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
    certificate = served.client.get(f"/v1/certificates/{request['certificate_id']}").raise_for_status().json()
    assert verify(certificate).valid


def test_requests_wait_while_the_data_folder_is_away_and_go_on_when_it_is_back(served: Service) -> None:
    folder = served.settings.data_folder
    tested = next(row.user_id for row in read_metadata(folder) if row.split == "test")
    context = Context.open(served.settings)

    def has_counted() -> bool:  # else the call would be held as a mass deletion of nobody knows how many
        with reading(context.engine) as s:
            return bool((lease := s.get(WorkerLease, LINE)) and lease.n_subjects)

    served.processes.wait_until(has_counted, "the worker to count the people", RUN_SECONDS)
    context.engine.dispose()
    folder.rename(folder.with_name("away"))
    receipts = served.file(tested, "nobody-we-know")
    waiting = [served.completed(receipt["id"]) for receipt in receipts]
    assert {request["state"] for request in waiting} == {"needs_attention"}
    assert {request["attention_reason"] for request in waiting} == {MISSING}
    folder.with_name("away").rename(folder)
    served.processes.wait_until(
        lambda: all(served.request(receipt["id"])["state"] == "completed" for receipt in receipts),
        "both to complete",
        RUN_SECONDS,
    )
    assert [served.request(receipt["id"])["outcome"] for receipt in receipts] == ["erased", "no_data_held"]


def test_a_killed_worker_s_request_completes_exactly_once(running: Callable[..., Service]) -> None:
    """One request, a SIGKILL in each stage of workers as they are started; `tests/faults` has every point."""
    service = running(EXPUNGE_FAIL_AT=KILLED_AT[0], EXPUNGE_RERUN_SHARE="1")
    person = train_person(service)
    (receipt,) = service.file(person)
    for following in (*KILLED_AT[1:], ""):
        worker = service.processes.worker
        assert worker is not None
        assert worker.wait(RUN_SECONDS) == -signal.SIGKILL
        service.processes.start_worker(EXPUNGE_FAIL_AT=following, EXPUNGE_RERUN_SHARE="1")
    service.completed(receipt["id"])
    check_erased(service, receipt["id"], person)
    certificate = (
        service.client.get(f"/v1/certificates/{service.request(receipt['id'])['certificate_id']}")
        .raise_for_status()
        .json()
    )
    assert {check.name: check.passed for check in verify(certificate).checks}["re-run"] is True


def test_a_candidate_that_does_not_come_out_again_is_not_deployed(running: Callable[..., Service]) -> None:
    """The worker dies before it makes the candidate again; then somebody changes the seed it says it used."""
    service = running(EXPUNGE_FAIL_AT="rerun.start", EXPUNGE_RERUN_SHARE="1")
    (receipt,) = service.file(train_person(service))
    worker = service.processes.worker
    assert worker is not None
    assert worker.wait(RUN_SECONDS) == -signal.SIGKILL
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
    (first,) = served.client.get("/v1/keys").raise_for_status().json()["keys"]
    subprocess.run([sys.executable, "-m", "service.cli", "keys", "rotate-signing"], env=environment(served.settings),
                   check=True, capture_output=True, timeout=PATIENCE_SECONDS)  # fmt: skip
    now, before = served.client.get("/v1/keys").raise_for_status().json()["keys"]
    assert before["pem"] == first["pem"]
    (receipt,) = served.file("nobody-we-know")
    request = served.completed(receipt["id"])
    certificate = served.client.get(f"/v1/certificates/{request['certificate_id']}").raise_for_status().json()
    assert verify(certificate, public_key=read_public_keys(now["pem"])).valid
    assert not verify(certificate, public_key=read_public_keys(before["pem"])).valid


def test_a_second_worker_refuses(served: Service) -> None:
    first = served.processes.worker
    served.processes.start_worker()
    second, served.processes.worker = served.processes.worker, first
    assert second is not None
    assert second.wait(RUN_SECONDS) == 1
    log = (served.settings.home / "logs" / "worker.log").read_text()
    assert "Expected no other worker on model line 'default', found process" in log


def test_the_console_shows_what_happens(served: Service) -> None:
    (receipt,) = served.file("nobody-we-know")
    served.completed(receipt["id"])
    url = f"http://127.0.0.1:{served.settings.console_port}"
    assert httpx.get(url, timeout=PATIENCE_SECONDS).status_code == 401
    assert httpx.get(url, auth=("operator", "wrong"), timeout=PATIENCE_SECONDS).status_code == 401
    for path in ("/", "/models", f"/requests/{receipt['id']}"):
        page = httpx.get(url + path, auth=("operator", served.key), timeout=PATIENCE_SECONDS)
        assert page.status_code == 200
        assert "nobody-we-know" not in page.text
    assert receipt["id"][:8] in httpx.get(url, auth=("operator", served.key), timeout=PATIENCE_SECONDS).text
    metrics = httpx.get(f"{url}/metrics", timeout=PATIENCE_SECONDS).text
    assert 'expunge_requests{state="completed"}' in metrics
