"""Pages that read: whole, escaped, for whom they are, and true."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import select

from audit.policy import load_policy
from service.console.rendering import HEADERS
from service.context import Context
from service.keys import api_keys
from service.keys.api_keys import Client
from service.models.shadowing import OTHERS, Figures, to_json
from service.requests import intake, states
from service.requests.doubts import ALIKE
from service.requests.schemas import Filing
from service.requests.views import A_HUMAN_MUST_LOOK
from service.store.engine import session
from service.store.tables import (
    Attempt,
    ErasureRequest,
    ModelVersion,
    OpenLine,
    ReferenceBlock,
    Run,
    ServingWorker,
    ShadowComparison,
    WorkerLease,
)
from tests.service.console.conftest import Browser
from tests.service.qualified import N_SUBJECTS, write_qualification
from unlearning.faces.dataset import METADATA

CANARY = "canary-77aa"
PAGES = (
    "/",
    "/runs",
    "/runs/run-1",
    "/models",
    "/banks",
    "/methods",
    "/file",
    "/register",
    "/requests/{request_id}",
    "/nowhere",
)
OURS = Client("client", "client", frozenset(api_keys.SCOPES))
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def request_id(context: Context) -> str:
    """A request in a run whose first attempt failed."""
    filing = Filing(user_ids=[CANARY], callback_url="https://privacy.example.org/?a=<b>")
    filed = intake.file_requests(context, OURS, filing, n_subjects=lambda: 40, most_open=9)
    now, policy = context.now(), load_policy(context.settings.policy)
    with session(context.engine) as s:
        request = s.get_one(ErasureRequest, filed.requests[0].id)
        run = Run(
            id="run-1", line="default", stage="unlearning", base_digest="b" * 64, policy_digest=policy.digest, seed=1,
            created_at=now, updated_at=now, stage_note="reference models 3/64",
        )  # fmt: skip
        failed = Attempt(
            run_id="run-1", step=0, method="remix", seed=1, candidate_digest="c" * 64, verdict="FAILED",
            reasons=[EVIL], started_at=now, finished_at=now, figures={"checks": [
                {"name": "cost_share", "value": 0.5, "bar": 0.2, "passed": False, "sentence": EVIL, "applicable": True}
            ]},
        )  # fmt: skip
        s.add_all([run, OpenLine(line="default", run_id="run-1"), failed])
        states.move(s, request, "unlearning", now=now, run_id="run-1")
        s.commit()
    return filed.requests[0].id


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_has_no_inline_code_and_asks_nobody_else(
    signed_in: Callable[..., Browser], request_id: str, path: str
) -> None:
    page = signed_in(*api_keys.SCOPES).get(path.format(request_id=request_id))
    assert page.status_code == (404 if path == "/nowhere" else 200)
    assert {name: page.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in page.headers["content-security-policy"]
    text = page.text
    assert text.count("<h1>") == 1
    assert 'lang="en"' in text
    assert re.findall(r'(?:src|href|action)="(?!/|#)([^"]*)"', text) == []
    assert re.search(r"<style|\sstyle=|\son\w+=", text) is None
    assert re.findall(r"<script(?! type=\"module\" src=\"/static/live.js\">)", text) == []
    assert CANARY not in text
    assert EVIL not in text


def test_a_request_tells_its_way(signed_in: Callable[..., Browser], request_id: str) -> None:
    page = signed_in(api_keys.AUDIT).get(f"/requests/{request_id}").text
    for words in (
        "Reference models", "3 of 64", 'value="3"', "Remix", "failed", "&lt;script&gt;",
        "Cost compared with retraining",
        "/runs/run-1/reports/0", "2. Random mask", "3 to 5. Exact retraining", "only if needed", "pending",
        "?a=&lt;b&gt;",
    ):  # fmt: skip
        assert words in page, words
    assert 'data-poll="1000"' in page


def test_an_attempt_that_made_nothing_to_audit_has_no_report(
    signed_in: Callable[..., Browser], request_id: str, context: Context
) -> None:
    with session(context.engine) as s:
        attempt = s.exec(select(Attempt)).one()
        attempt.verdict, attempt.candidate_digest, attempt.figures = "UNDETERMINED", None, {}
        attempt.reasons = ["remix diverged."]
        s.add(attempt)
        s.commit()
    browser = signed_in(api_keys.AUDIT)
    for place in (f"/requests/{request_id}", "/runs/run-1"):
        page = browser.get(place).text
        assert "remix diverged." in page
        assert "undetermined" in page
        assert "/runs/run-1/reports/0" not in page


def test_a_page_that_did_not_change_is_not_sent_again(
    signed_in: Callable[..., Browser], request_id: str, context: Context
) -> None:
    browser, place = signed_in(api_keys.AUDIT), f"/requests/{request_id}"
    tag = browser.get(place).headers["etag"]
    again = browser.get(place, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    with session(context.engine) as s:
        run = s.get_one(Run, "run-1")
        run.stage_note = "reference models 4/64"
        s.add(run)
        s.commit()
    assert browser.get(place, headers={"If-None-Match": tag}).status_code == 200


def test_the_nearest_deadline_comes_first_and_filters_narrow(
    signed_in: Callable[..., Browser], context: Context, clock: Any
) -> None:
    ids = []
    for name in ("first", "second", "third"):
        filing = Filing(user_ids=[name])
        ids.append(intake.file_requests(context, OURS, filing, n_subjects=lambda: 9, most_open=9).requests[0].id)
        clock.advance(days=12)
    browser = signed_in(api_keys.AUDIT)

    def listed(query: str) -> list[str]:
        return re.findall(r'<th scope="row"><a href="/requests/([\w-]+)"', browser.get(f"/{query}").text)

    assert listed("") == ids
    assert listed("?due=late") == ids[:1]
    assert listed("?due=soon") == ids[1:2]
    assert listed("?state=completed") == []
    found = browser.get(f"/?id=%20{ids[1][:13]}")
    assert found.headers["location"] == f"/requests/{ids[1]}"
    assert "No request matches" in browser.get("/?id=%25").text
    assert browser.get("/?state=lost").status_code == 422
    assert 'class="under late"' in browser.get("/").text


def test_a_client_sees_its_own_requests_and_no_other_pages(signed_in: Callable[..., Browser], request_id: str) -> None:
    stranger = signed_in(api_keys.READ)
    assert request_id not in stranger.get("/?state=all").text
    assert stranger.get(f"/requests/{request_id}").status_code == 404
    owner = signed_in(api_keys.READ, key_id="client")
    assert request_id in owner.get("/").text
    page = owner.get(f"/requests/{request_id}").text
    assert "run-1" not in page
    assert "3 of 64" in page
    for path in ("/runs", "/runs/run-1", "/models", "/banks", "/methods"):
        assert owner.get(path).status_code == 403
        assert f'href="{path}"' not in page


def test_why_a_run_stopped_is_for_operators(
    signed_in: Callable[..., Browser], request_id: str, context: Context
) -> None:
    """From the reason a client could learn who is in the data."""
    with session(context.engine) as s:
        request = s.get_one(ErasureRequest, request_id)
        states.move(s, request, "needs_attention", now=context.now(), note=ALIKE, attention_reason=ALIKE)
        s.commit()
    browsers = signed_in(api_keys.READ, key_id="client"), signed_in(api_keys.ADMIN)
    for browser, told, not_told in zip(browsers, (A_HUMAN_MUST_LOOK, ALIKE), (ALIKE, A_HUMAN_MUST_LOOK), strict=True):
        for place, times in (("/", 1), (f"/requests/{request_id}", 2)):
            page = browser.get(place).text
            assert page.count(told) == times
            assert not_told not in page


def test_banks_show_how_far_they_are_and_what_they_are_worth(
    signed_in: Callable[..., Browser], context: Context
) -> None:
    now = context.now()
    block: dict[str, Any] = {
        "line": "default", "n_people": 2, "n_wanted": 64, "n_learned": 40, "size_bytes": 1000, "cost_seconds": 60.0,
        "bank": "d" * 64, "begun_at": now, "updated_at": now,
    }  # fmt: skip
    with session(context.engine) as s:
        s.add(ReferenceBlock(block="one", state="building", n_models=9, n_next=9, n_gone=0, staleness=0.0, **block))
        s.add(ReferenceBlock(block="two", state="stale", n_models=64, n_next=7, n_gone=1, staleness=0.025, **block))
        s.commit()
    page = signed_in(api_keys.AUDIT).get("/banks").text
    for words in ("9 of 64", "64 of 64, its successor has 7", "1 of 40", "2.5 %; at most 5 % allowed", "building"):
        assert words in page, words


def test_models_name_a_process_that_must_not_answer(signed_in: Callable[..., Browser], context: Context) -> None:
    now = context.now()
    with session(context.engine) as s:
        s.add(
            ServingWorker(
                boot_id="b", line="default", host="h", pid=1, expected=2, started_at=now, heartbeat_at=now,
                lease_until=now - timedelta(seconds=1), last_error=EVIL,
            )
        )  # fmt: skip
        s.commit()
    page = signed_in(api_keys.AUDIT).get("/models").text
    assert "ran out" in page
    assert EVIL not in page


def test_a_run_shows_what_its_candidate_changed_in_live_predictions(
    signed_in: Callable[..., Browser], context: Context, request_id: str
) -> None:
    browser, now = signed_in(api_keys.AUDIT), context.now()
    assert "Live predictions answered too" not in browser.get("/runs/run-1").text
    counts = {
        0: Figures(100, 20, 0, 10.0, (50, 20, 10, 10, 10, 0)), 1: Figures(300, 3, 0, 3.0, (300, 0, 0, 0, 0, 0)),
        OTHERS: Figures(40, 2, 2, 3.8, (38, 0, 0, 0, 0, 0)),
    }  # fmt: skip
    manifest = {"classes": [EVIL, "none", "sun glasses"]}
    with session(context.engine) as s:
        s.add(
            ModelVersion(
                digest="b" * 64, line="default", state="active", manifest=manifest, signature="", created_at=now
            )
        )
        s.add(
            ShadowComparison(
                run_id="run-1", digest="c" * 64, share=0.1, counts=to_json(counts), began_at=now,
                ended_at=now + timedelta(seconds=90),
            )
        )  # fmt: skip
        s.commit()
    page = browser.get("/runs/run-1").text
    assert EVIL not in page
    section = page.partition('id="shadowing"')[2].partition("</section>")[0]
    assert "answered 440 live predictions too: 5.7% would have another label" in section
    assert "It could not answer 2." in section
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", section)]
    assert [[cell for cell in row.split("|") if cell] for row in rows] == [
        ["none", "300", "1.0 %", "0.0 %", "0.010"],
        ["&lt;script&gt;alert(1)&lt;/script&gt;", "100", "20.0 %", "30.0 %", "0.100"],
        ["classes with few images", "40", "10.0 %", "0.0 %", "0.100"],
        ["all", "440", "6.1 %", "6.8 %", "0.038"],
    ]
    assert "For 1 min 30 s the candidate answered 10 % of the batches" in section


def test_runs_say_what_the_worker_waits_for(signed_in: Callable[..., Browser], context: Context) -> None:
    browser, now = signed_in(api_keys.AUDIT), context.now()
    assert "The worker has waited" not in browser.get("/runs").text
    with session(context.engine) as s:
        s.add(
            WorkerLease(
                line="default", holder="x", host="h", pid=1, fencing_token=1, waits_for="Shared storage",
                waits_since=now, heartbeat_at=now, lease_until=now + timedelta(seconds=60),
            )
        )  # fmt: skip
        s.commit()
    assert "shared storage fails" in browser.get("/runs").text


def test_methods_show_the_ladder_in_force_and_what_it_did_here(
    signed_in: Callable[..., Browser], request_id: str
) -> None:
    page = signed_in(api_keys.AUDIT).get("/methods").text
    assert [page.index(f"{i}. {name}") for i, name in ((1, "Remix"), (2, "Random mask"), (3, "Exact retraining"))]
    assert "0 of 1 audits passed here" in page
    assert "random mixture of its own layer" in page


def test_methods_say_whether_they_are_qualified(signed_in: Callable[..., Browser], context: Context) -> None:
    browser = signed_in(api_keys.AUDIT)
    assert "qualified" not in browser.get("/methods").text  # without data nobody knows
    table = context.settings.data_folder / METADATA
    table.parent.mkdir(parents=True)
    rows = "".join(f"{n}.png,{n},young,train\n" for n in range(N_SUBJECTS))
    table.write_text(f"file_name,user_id,label,split\n{rows}")
    write_qualification(context, method="remix")
    write_qualification(context, method="random_mask", passed=False)
    page = browser.get("/methods").text
    assert "Qualified until 2026-07-30, entry 1 of the log. All 3 of 3." in page
    assert "All 3 of 3. Relearning was not measured. No canaries were planted. Features: not measured." in page
    assert "random_mask failed its qualification on 2026-01-31: 2 of 3. Probe 2: it did not." in page
    assert "dilute was never qualified; run `expunge qualify dilute`." in page
    assert "retrain was never" not in page
