"""What could not be looked at is never answered as nothing there."""

from __future__ import annotations

import shutil

import pytest
import sqlalchemy as sa
from sqlmodel import select

from audit.proof.certificate import verify
from service.console.metrics import DatabaseCollector, exposition
from service.context import LINE, Context
from service.erasure.completion import complete, purge
from service.erasure.lease import LineLease
from service.keys.api_keys import READ, Client
from service.models import registry, rosters
from service.models.deployment import pointer
from service.requests import data_folder, decisions, doubts, views
from service.requests.data_folder import Watch
from service.requests.doubts import skeleton
from service.requests.schemas import Decision
from service.requests.views import A_HUMAN_MUST_LOOK
from service.store.engine import reading, session
from service.store.tables import LearnedSubject, WorkerLease
from service.training.production import train_production
from tests.service import tiny
from tests.service.versions import write_weights
from unlearning.faces.dataset import METADATA


@pytest.fixture
def carry_out(only_pipeline, tiny_context):
    """File requests and carry out what waits as the worker does, without DBOS; gives the run's end."""
    only_pipeline.context = tiny_context

    def carry_out(*user_ids: str) -> str:
        if user_ids:
            tiny.file(tiny_context, *user_ids)
        run_id = tiny.claim(tiny_context, tiny.POLICY)
        assert run_id is not None
        planned = only_pipeline.plan(run_id)
        if isinstance(planned, str):
            return only_pipeline.ask_for_help(run_id, planned)
        assert not planned
        only_pipeline.purge(run_id)
        only_pipeline.complete(run_id)
        return "completed"

    return carry_out


def the_request(context: Context):
    (request,) = tiny.requests(context)
    return request


def drop_rows(context: Context, *user_ids: str) -> None:
    """Take people out of the table, as an editor would; their files stay."""
    table = context.settings.data_folder / METADATA
    kept = [line for line in table.read_text().splitlines() if not any(f",{who}," in line for who in user_ids)]
    table.write_text("\n".join(kept) + "\n")


def check_waits(context: Context, person: str, *, says: str) -> None:
    """The request waits with its person, and nothing was signed or destroyed."""
    request = the_request(context)
    assert (request.state, request.user_id, request.outcome) == ("needs_attention", person, None)
    assert request.attention_reason.startswith(says), request.attention_reason
    assert tiny.certificates(context) == []
    assert [version.state for version in registry.versions(context)] == ["active"]


def test_no_data_folder_is_not_no_data(tiny_context, carry_out):
    person, folder = tiny.people(tiny_context)[0], tiny_context.settings.data_folder
    folder.rename(folder.with_name("away"))
    assert carry_out(person) == "needs_attention"
    check_waits(tiny_context, person, says="Could not look: there is no metadata.csv in the data folder")


def test_a_table_that_lost_rows_answers_nothing(tiny_context, carry_out):
    person, lost = tiny.people(tiny_context)[:2]
    drop_rows(tiny_context, lost)
    assert carry_out(person) == "needs_attention"
    check_waits(tiny_context, person, says="Could not look: the data folder lacks 1 of the 40 people")


def test_somebody_the_model_learned_from_is_never_unknown(tiny_context, carry_out):
    lost = tiny.people(tiny_context)[0]
    drop_rows(tiny_context, lost)
    assert carry_out(lost) == "needs_attention"
    check_waits(tiny_context, lost, says="Could not look: the data folder lacks 1 of the 40 people")


def test_a_folder_of_other_people_answers_nothing(tiny_context, carry_out):
    tiny.change_table(tiny_context.settings, lambda row: row | {"user_id": "other-" + row["user_id"]})
    assert carry_out("nobody-we-know") == "needs_attention"
    check_waits(tiny_context, "nobody-we-know", says="Could not look: the data folder lacks 40 of the 40 people")


def test_somebody_moved_out_of_the_training_split_is_not_forgotten_by_that(tiny_context, carry_out):
    person = tiny.people(tiny_context)[0]
    tiny.change_table(tiny_context.settings, lambda row: row | ({"split": "test"} if row["user_id"] == person else {}))
    assert carry_out(person) == "needs_attention"
    check_waits(tiny_context, person, says="Could not look: the data folder lacks 1 of the 40 people")


def test_weights_the_database_does_not_know_mean_that_it_is_older(tiny_context, carry_out):
    write_weights(tiny_context.settings.models_folder / f"{'a' * 64}.safetensors", 1)
    assert carry_out("nobody-we-know") == "needs_attention"
    check_waits(tiny_context, "nobody-we-know", says="Could not look: the home holds 1 weights file(s)")


def test_another_spelling_of_a_known_id_waits_for_a_human(tiny_context, carry_out):
    person = tiny.people(tiny_context)[0]
    assert carry_out(person.upper()) == "needs_attention"
    check_waits(tiny_context, person.upper(), says="No data are held under this user id, but")


def test_images_that_are_in_no_row_may_be_anybodys(tiny_context, carry_out):
    drop_rows(tiny_context, tiny.people(tiny_context, "test")[0])
    assert carry_out("nobody-we-know") == "needs_attention"
    check_waits(tiny_context, "nobody-we-know", says="No data are held under this user id, but image files lie")


def approve(context: Context) -> None:
    """An operator answers all that waits."""
    for request in tiny.requests(context):
        if request.state == "needs_attention":
            decisions.approve(context, tiny.CLIENT, request.id, Decision(reason="Looked at."))


def unknown_origin(context: Context) -> None:
    """As a home whose model an earlier release trained: no roster."""
    with session(context.engine) as s:
        s.execute(sa.delete(LearnedSubject))
        s.commit()


def roster(context: Context) -> set[str]:
    """Whom the model in service learned from."""
    with reading(context.engine) as s:
        return set(rosters.read(s, pointer(context).committed_digest))


def hashes(context: Context, people: list[str]) -> set[str]:
    return {context.keyring.subject_hash(person) for person in people}


def end_of(context: Context, request_id: str) -> tuple[str, str | None]:
    request = tiny.request_of(context, request_id)
    return request.state, request.outcome


def test_with_the_folder_back_requests_go_on_by_themselves(tiny_context, carry_out):
    person, folder = tiny.people(tiny_context)[0], tiny_context.settings.data_folder
    with LineLease(tiny_context):
        watch = Watch(tiny_context, clock=lambda: 0.0)
        watch.tend()
        folder.rename(folder.with_name("away"))
        assert carry_out(person) == carry_out("nobody-we-know") == "needs_attention"
        watch.tend()
        assert "expunge_data_obstacle 1.0" in exposition(DatabaseCollector(tiny_context))[0].decode()
        assert {request.state for request in tiny.requests(tiny_context)} == {"needs_attention"}
        folder.with_name("away").rename(folder)
        watch.tend()
        assert {request.state for request in tiny.requests(tiny_context)} == {"queued"}
        assert "expunge_data_obstacle 0.0" in exposition(DatabaseCollector(tiny_context))[0].decode()
    run_id = tiny.claim(tiny_context, tiny.POLICY)
    assert tiny.workspace(tiny_context, run_id).make_plan().must_unlearn


def test_erased_people_whose_data_came_back_are_counted(tiny_context):
    """Somebody restores the data folder; a person whose erasure is under way has not come back."""
    folder, person, other = tiny_context.settings.data_folder, *tiny.people(tiny_context)[:2]
    shutil.copytree(folder, folder.with_name("backup"))
    run_id = tiny.judge_run(tiny_context, person)
    tiny.finish(tiny_context, run_id)
    tiny.file(tiny_context, other)
    with LineLease(tiny_context):
        watch = Watch(tiny_context, clock=lambda: 0.0)
        watch.tend()
        assert "expunge_erased_people_returned 0.0" in exposition(DatabaseCollector(tiny_context))[0].decode()
        shutil.copytree(folder.with_name("backup"), folder, dirs_exist_ok=True)
        watch.tend()
        assert "expunge_erased_people_returned 1.0" in exposition(DatabaseCollector(tiny_context))[0].decode()


def test_the_watch_looks_again_when_the_table_changes_or_its_time_comes(tiny_context):
    now = [0.0]
    with LineLease(tiny_context):
        watch = Watch(tiny_context, clock=lambda: now[0])

        def seen() -> str | None:
            watch.tend()
            with reading(tiny_context.engine) as s:
                return s.get_one(WorkerLease, LINE).data_obstacle

        assert seen() == ""
        unknown = write_weights(tiny_context.settings.models_folder / f"{'a' * 64}.safetensors", 1)
        assert seen() == ""
        now[0] = data_folder.LOOK_AGAIN_SECONDS
        assert seen().startswith("Could not look: the home holds 1 weights file(s)")
        unknown.unlink()
        table = tiny_context.settings.data_folder / METADATA
        table.write_text(table.read_text() + "\n")
        assert seen() == ""
        table.write_text("not a table")
        assert seen() == data_folder.UNREADABLE


def test_approving_while_the_folder_is_away_answers_nothing(tiny_context, carry_out):
    folder = tiny_context.settings.data_folder
    folder.rename(folder.with_name("away"))
    for _ in range(2):
        assert carry_out(*([] if tiny.requests(tiny_context) else ["nobody-we-know"])) == "needs_attention"
        check_waits(tiny_context, "nobody-we-know", says=data_folder.MISSING)
        approve(tiny_context)


def test_people_added_since_the_training_are_no_obstacle(tiny_context, carry_out):
    tiny.add_image(tiny_context, tiny.people(tiny_context)[0])
    tiny.change_table(tiny_context.settings, lambda row: row | ({"split": "train"} if row["split"] == "test" else {}))
    assert carry_out("nobody-we-know") == "completed"
    assert the_request(tiny_context).outcome == "no_data_held"


def test_a_service_that_holds_nothing_yet_says_so_after_a_look(context, clock, only_pipeline):
    only_pipeline.context = context
    (request_id,) = tiny.file(context, "s31")
    clock.advance(seconds=context.settings.hold_seconds)
    run_id = tiny.claim(context, tiny.POLICY)
    assert only_pipeline.plan(run_id) == data_folder.MISSING
    only_pipeline.ask_for_help(run_id, data_folder.MISSING)
    context.settings.data_folder.mkdir()
    (context.settings.data_folder / METADATA).write_text("file_name,user_id,label,split\n")
    assert data_folder.release(context) == 1
    run_id = tiny.claim(context, tiny.POLICY)
    assert only_pipeline.plan(run_id) is False
    only_pipeline.purge(run_id)
    only_pipeline.complete(run_id)
    assert end_of(context, request_id) == ("completed", "no_data_held")
    statement = verify(tiny.certificates(context)[0].envelope).statement
    assert statement["predicate"]["procedure"]["data_digest_before"]


def test_rosters_follow_models_through_erasures(tiny_context):
    person, *others = tiny.people(tiny_context)
    first = pointer(tiny_context).committed_digest
    assert roster(tiny_context) == hashes(tiny_context, [person, *others])
    run_id = tiny.deploy_run(tiny_context, person)
    assert roster(tiny_context) == hashes(tiny_context, others)
    purge(tiny.workspace(tiny_context, run_id))
    with reading(tiny_context.engine) as s:
        assert rosters.read(s, first) == {}  # it went with the weights
        assert rosters.naming(s, hashes(tiny_context, [person])) == {}
        assert set(s.exec(select(LearnedSubject.n_images))) == {tiny.N_IMAGES}


def test_a_model_trained_anew_is_compared_with_what_it_learned_from(tiny_context, carry_out):
    """The people are gone for good: `expunge train` is the way out."""
    lost = tiny.people(tiny_context)[0]
    for image in tiny.images_of(tiny_context, lost):
        image.unlink()
    drop_rows(tiny_context, lost)
    assert carry_out("nobody-we-know") == "needs_attention"
    train_production(tiny_context, seed=1)
    approve(tiny_context)
    assert carry_out() == "completed"


def test_an_older_model_that_remembers_somebody_goes_with_their_erasure(tiny_context, carry_out):
    """The model in service never knew them, so no model is made; the one before may still be gone back to."""
    lost = tiny.people(tiny_context)[0]
    for image in tiny.images_of(tiny_context, lost):
        image.unlink()
    drop_rows(tiny_context, lost)
    older = pointer(tiny_context).committed_digest
    train_production(tiny_context, seed=1)
    carry_out("nobody-we-know")
    assert the_request(tiny_context).outcome == "no_data_held"
    assert registry.get(tiny_context, older).state == "retired"
    assert carry_out(lost) == "completed"
    assert registry.get(tiny_context, older).state == "destroyed"
    assert sorted(request.outcome for request in tiny.requests(tiny_context)) == ["erased", "no_data_held"]
    destroyed = [
        verify(record.envelope).statement["predicate"]["purge"]["destroyed"]["older model versions"]
        for record in tiny.certificates(tiny_context)
    ]
    assert destroyed == [0, 1]


def test_fewer_images_than_were_learned_from_wait_for_a_human(tiny_context, carry_out):
    person = tiny.people(tiny_context)[0]
    image = tiny.images_of(tiny_context, person)[0]
    table = tiny_context.settings.data_folder / METADATA
    kept = [line for line in table.read_text().splitlines() if image.name not in line]
    table.write_text("\n".join(kept) + "\n")
    image.unlink()
    assert carry_out(person) == "needs_attention"
    check_waits(tiny_context, person, says=doubts.FEWER)
    approve(tiny_context)
    run_id = tiny.claim(tiny_context, tiny.POLICY)
    assert len(tiny.workspace(tiny_context, run_id).make_plan().forget) == tiny.N_IMAGES - 1


def test_a_model_of_an_earlier_release_gets_its_roster_from_the_folder_it_came_from(tiny_context, carry_out):
    run_id = tiny.deploy_run(tiny_context, tiny.people(tiny_context)[0])
    purge(tiny.workspace(tiny_context, run_id))
    complete(tiny.workspace(tiny_context, run_id))
    carry_out(tiny.people(tiny_context, "test")[0])
    before = roster(tiny_context)
    unknown_origin(tiny_context)
    assert carry_out("nobody-we-know") == "completed"
    assert roster(tiny_context) == before == hashes(tiny_context, tiny.people(tiny_context))


def test_a_model_of_an_earlier_release_and_another_folder_need_a_human(tiny_context, carry_out):
    tiny.add_image(tiny_context, tiny.people(tiny_context)[0])
    unknown_origin(tiny_context)
    assert carry_out("nobody-we-know", "somebody-else") == "needs_attention"
    assert {request.attention_reason for request in tiny.requests(tiny_context)} == {data_folder.NO_ROSTER}
    first, second = tiny.requests(tiny_context)
    decisions.approve(tiny_context, tiny.CLIENT, first.id, Decision(reason="It is the folder."))
    only_run = tiny.claim(tiny_context, tiny.POLICY)
    assert tiny.workspace(tiny_context, only_run).make_plan().obstacle is None
    assert roster(tiny_context) == hashes(tiny_context, tiny.people(tiny_context))
    assert data_folder.release(tiny_context) == 1
    assert tiny.request_of(tiny_context, second.id).state == "queued"


def test_one_doubtful_request_does_not_stop_the_others(tiny_context, carry_out):
    person, known = tiny.people(tiny_context)[0], tiny.people(tiny_context, "test")[0]
    assert carry_out(known, person.upper(), "nobody-we-know") == "completed"
    ends = {request.state: request for request in tiny.requests(tiny_context)}
    assert sorted(request.state for request in tiny.requests(tiny_context)) == [
        "completed", "completed", "needs_attention",
    ]  # fmt: skip
    assert (ends["needs_attention"].user_id, ends["needs_attention"].run_id) == (person.upper(), None)
    assert 'set_aside_total{reason="alike"} 1.0' in exposition(DatabaseCollector(tiny_context))[0].decode()


def test_another_spelling_is_answered_once_a_human_says_that_it_is_somebody_else(tiny_context, carry_out, log_stream):
    person = tiny.people(tiny_context)[0].upper()
    drop_rows(tiny_context, tiny.people(tiny_context, "test")[0])  # and there are images of nobody
    assert carry_out(person) == "needs_attention"
    assert the_request(tiny_context).attention_reason == doubts.ALIKE
    approve(tiny_context)
    assert carry_out() == "needs_attention"
    assert the_request(tiny_context).attention_reason == doubts.UNNAMED
    approve(tiny_context)
    assert carry_out() == "completed"
    assert the_request(tiny_context).outcome == "no_data_held"
    assert "set_aside" in log_stream.getvalue()
    assert person.lower() not in log_stream.getvalue().lower()


def test_a_client_is_not_told_that_somebody_alike_is_known(tiny_context, carry_out):
    carry_out(tiny.people(tiny_context)[0].upper())
    client = Client("client", "client", frozenset({READ}))
    for who, told in ((client, A_HUMAN_MUST_LOOK), (tiny.CLIENT, doubts.ALIKE)):
        view = views.request_detail(tiny_context, who, the_request(tiny_context).id)
        (row,) = views.request_page(tiny_context, who, views.RequestFilter()).requests
        assert (view.attention_reason, row.attention_reason, view.events[-1].note) == (told, told, told)


@pytest.mark.parametrize(
    "spelling",
    [
        "Customer-7",
        "ＣＵＳＴＯＭＥＲ-７",
        "customer-007",
        "customer\N{EN DASH}7",
        "customer- 7",
        "customer-\N{ZERO WIDTH SPACE}7",
    ],
)
def test_spellings_of_one_id_have_one_skeleton(spelling):
    assert skeleton(spelling) == skeleton("customer-7")


@pytest.mark.parametrize("other", ["customer-70", "customer-17", "customer7", "customers-7", "custömer-7"])
def test_other_ids_have_another_skeleton(other):
    assert skeleton(other) != skeleton("customer-7")
