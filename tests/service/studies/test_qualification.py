"""Qualifying methods on a tiny home, whose models train in a tenth of a second: lots, verdicts and their records.

Also of `service.studies.lots`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlmodel import col, select

from audit.policy import PRESETS, Policy
from audit.proof import envelope as dsse
from audit.proof import log
from audit.proof.qualification import remarks
from audit.qualification import Bars
from service.banks.build import stores
from service.banks.file_format import BESIDE, FEATURES, OTHERS
from service.banks.qualifications import Qualified, find_valid, forget_probes, read_record
from service.commands.references import _qualify_what_is_due
from service.context import Context
from service.errors import ConflictError, DataChangedError, InvalidInputError
from service.keys.keyring import commitment
from service.settings import Settings
from service.store.engine import reading, session
from service.store.tables import LogLeaf, Qualification, Tombstone, TunedSubject
from service.studies import forget_setup, lots
from service.studies import qualification as study
from service.studies.experiments import draw_references, store_of
from service.studies.forget_setup import ORIGINAL_SEEDS, original_of
from service.studies.looks import N_ORIGINALS
from service.studies.lots import Asked, draw_lot
from service.studies.prices import Price, price_of, relearning_share
from service.studies.qualification import Prepared, due, prepare, qualify
from service.training import spec
from service.training.data import images_in_service, recipe_of
from service.training.jobs import release_processes
from service.training.spec import open_images, sample_of, subjects_of
from tests.service.studies.test_experiments import RECIPE
from unlearning.errors import MethodError
from unlearning.faces.sources import synthetic
from unlearning.methods import settings_for
from unlearning.recipes import RECIPES

LAX = Policy(
    name="lax", n_models=4, retain_ratio_min=0.0, test_ratio_min=0.0, exchangeability_alpha=0.0,
    forgetting_ratio_min=0.0, cost_share_max=1.0, ladder=("finetune", "retrain"),
)  # fmt: skip
HARD = replace(LAX, name="hard", retain_ratio_min=1.0, cost_share_max=0.0)
"""No run costs nothing, so no method passes."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """One home for all tests; each has a database state of its own through the lots it draws."""
    folder = tmp_path_factory.mktemp("qualify")
    (folder / "keys").mkdir(mode=0o700)
    (folder / "keys" / "block.key").write_bytes(bytes(32))  # so that every run of the tests draws the same lots
    (folder / "keys" / "block.key").chmod(0o600)
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    settings = Settings(home=folder, recipe=str(folder / "recipe.json"), jobs=1, device="cpu", database_url="")
    synthetic.write_folder(settings.data_folder, n_subjects=20, images_per_subject=3, size=(16, 16), seed=1)
    context = Context.open(settings)
    yield context
    context.engine.dispose()
    release_processes()


@pytest.fixture
def context(home: Context) -> Iterator[Context]:
    """The home with no lot drawn, nobody waiting and nobody tuned on."""
    yield home
    with session(home.engine) as s:
        for table in (Qualification, TunedSubject, Tombstone):
            for row in s.exec(select(table)):
                s.delete(row)
        s.commit()


def asked(*methods: str, policy: Policy = LAX, **changes: int) -> Asked:
    return Asked(
        methods or ("finetune",), policy, **{"n_probes": 3, "n_references": 8, "n_runs": 8, "n_canaries": 0, **changes}
    )


def rows(context: Context) -> list[Qualification]:
    with reading(context.engine) as s:
        return list(s.exec(select(Qualification).order_by(col(Qualification.lot_log_index))))


def leaf(context: Context, index: int | None) -> dict[str, Any]:
    with reading(context.engine) as s:
        found: dict[str, Any] = log.parse_json(s.get_one(LogLeaf, index).entry)
    return found


def training_people(context: Context) -> list[str]:
    return sorted(open_images(images_in_service(context, recipe_of(context))).train_subjects())


def find(context: Context, method: str = "finetune") -> Qualified | str:
    recipe = recipe_of(context)
    options = settings_for(method, recipe).to_dict()
    return find_valid(context, method=method, options=options, recipe=recipe, n_subjects_now=16, bars=Bars.of(LAX))


# The price


def test_standard_is_qualified_for_at_most_300_trainings() -> None:
    """References, the originals, canaries, and every run of both methods as expensive as the policy lets it be."""
    policy = PRESETS["standard"]
    plan = Asked(policy.ladder[:-1], policy)
    assert (len(plan.methods), plan.n_probes, plan.n_references, plan.n_runs) == (2, 8, 23, 23)
    assert plan.n_canaries == 4
    canaries = 8 + 4 + 3 + 2 * 3 * 2 * 0.2
    assert plan.most_trainings == pytest.approx(8 * 23 + 1 + 8 + 2 * 8 * 23 * 0.2 + canaries)
    assert plan.n_relearned == 8 * (23 + 1 + 8) + 2 * 8 * 23
    relearning = plan.n_relearned * relearning_share(RECIPES["att_small"], 310)  # 31 of 32 AT&T subjects
    assert relearning == pytest.approx(624 * 2 / 100)
    assert plan.most_trainings + relearning <= 300
    assert Asked(policy.ladder[:-1], policy, n_references=24, n_runs=24).most_trainings + relearning > 300


def test_the_price_is_told_before_and_nothing_is_left_afterwards(context: Context) -> None:
    prepared = prepare(context, asked("finetune", "seif", n_references=9, n_runs=9))
    price = prepared.price
    assert price.n_trainings + price.n_runs + price.n_there - 1 - 8 == 3 * (9 + 2 * 9)  # and the originals
    assert price.n_runs > 0
    stage = next(iter(prepared.stages.values()))
    once = relearning_share(stage.plan.spec.recipe, len(stage.plan.spec.retain))
    assert 0 < price.relearning_worth <= prepared.asked.n_relearned * once + 1e-9
    assert price.runs_worth == price.n_runs * LAX.cost_share_max  # nobody tuned for this recipe
    assert price.sentence().startswith(
        f"{price.n_trainings} models to train and {price.n_runs} runs of methods, with relearning"
    )
    qualify(context, prepared)
    left = price_of(context, prepared.asked, prepared.lots, prepared.stages, None)
    assert (left.n_trainings, left.n_runs) == (0, 0)
    assert left.sentence() == "All 81 models are here already."


@pytest.mark.parametrize(
    ("seconds", "time"),
    [(None, "trainings."), (0.1, ", less than a minute of one core."), (60.0, ", 12 min"), (6000.0, ", 20.3 h")],
)
def test_the_price_in_time_if_a_training_is_known(seconds: float | None, time: str) -> None:
    assert time in Price(10, 8, 2.2, 0, seconds).sentence()


# The lot


def test_the_lot_is_logged_before_any_model_is_made(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forget_setup, "train", lambda *_, **__: pytest.fail("nothing is to be trained yet"))
    prepared = prepare(context, asked("finetune"))
    (row,), (lot,) = rows(context), prepared.lots
    entry = leaf(context, row.lot_log_index)
    assert entry["kind"] == "qualification-lot"
    assert (entry["method"], entry["lot_number"], entry["n_references"], entry["n_runs"]) == ("finetune", 1, 8, 8)
    assert entry["policy_digest"] == LAX.digest
    assert entry["bars"] == Bars.of(LAX).to_dict()
    assert entry["probes"] == list(lot.commitments) == sorted(lot.commitments)
    for digest in ("settings_digest", "recipe_digest", "method_code", "training_code", "data_digest"):
        assert entry[digest] == getattr(row, digest)
    for person, probe in zip(lot.people, row.probes, strict=True):
        assert commitment(bytes.fromhex(probe["salt"]), person) == probe["commitment"]
        assert person not in json.dumps(entry)
        assert probe["tag"] not in json.dumps(entry)
    assert (row.passed, row.record, row.log_index) == (None, None, None)
    assert "has no result yet" in str(find(context))


def test_a_lot_is_that_of_a_keyed_hash_and_of_nothing_else(context: Context) -> None:
    people = training_people(context)
    lot = prepare(context, asked()).lots[0]
    data = rows(context)[0].data_digest
    tagged = [(person, context.keyring.block_hash(person)) for person in people]
    assert set(lot.people) == set(draw_lot(tagged, data, 1, 3))
    assert draw_lot(tagged[::-1], data, 1, 16) == draw_lot(tagged, data, 1, 16)
    orders = {tuple(draw_lot(tagged, data, number, 16)) for number in range(20)}
    assert len(orders) == 20
    assert len({order[0] for order in orders}) > 5


def test_methods_asked_together_share_their_probes(context: Context) -> None:
    one, other = prepare(context, asked("finetune", "seif")).lots
    assert set(one.people) == set(other.people)
    assert set(one.commitments).isdisjoint(other.commitments)


def test_nobody_who_waits_or_was_tuned_on_is_drawn(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    people, recipe = training_people(context), recipe_of(context)
    waiting, tuned, public, *free = people
    with session(context.engine) as s:
        s.add(Tombstone(subject_hash=context.keyring.subject_hash(waiting), created_at=context.now()))
        tag = context.keyring.block_hash(tuned)
        s.add(TunedSubject(method="finetune", recipe_digest=recipe.digest, tag=tag))
        s.add(TunedSubject(method="seif", recipe_digest=recipe.digest, tag=context.keyring.block_hash(free[0])))
        s.commit()
    record = {"settings": {}, "record": {"people": [[public]]}}
    monkeypatch.setattr(lots, "tuned_record", lambda *_: record)
    (lot,) = prepare(context, asked(n_probes=len(people))).lots
    assert set(lot.people) == set(free)
    (row,) = rows(context)
    assert (row.n_probes, row.n_subjects, row.n_drawn_from) == (len(free), len(people) - 1, len(free))
    assert leaf(context, row.lot_log_index)["n_drawn_from"] == len(free)  # whoever tunes on the hard ones is seen


@pytest.mark.parametrize("n_left", [0, 2])
def test_too_few_subjects(context: Context, n_left: int) -> None:
    with session(context.engine) as s:
        recipe = recipe_of(context)
        for person in training_people(context)[n_left:]:
            s.add(TunedSubject(method="finetune", recipe_digest=recipe.digest, tag=context.keyring.block_hash(person)))
        s.commit()
    with pytest.raises(InvalidInputError, match=f"at least 3 subjects of the training split .* got {n_left}"):
        prepare(context, asked())
    assert not rows(context)


def test_a_lot_without_a_result_is_taken_up_again(context: Context) -> None:
    (first,) = prepare(context, asked()).lots
    (again,) = prepare(context, asked()).lots
    assert first.is_new
    assert again == replace(first, is_new=False)
    assert len(rows(context)) == 1


@pytest.mark.parametrize("other", [{"n_probes": 4}, {"n_references": 9}, {"n_runs": 9}, {"policy": HARD}])
def test_asking_for_something_else_draws_a_lot_that_tells_of_the_first(context: Context, other: dict[str, Any]) -> None:
    prepare(context, asked())
    (lot,) = prepare(context, asked(**other)).lots
    assert (lot.number, lot.is_new) == (2, True)
    assert leaf(context, rows(context)[-1].lot_log_index)["lot_number"] == 2


def test_a_lot_that_lost_a_probe_subject_is_drawn_anew(context: Context) -> None:
    (lot,) = prepare(context, asked()).lots
    with session(context.engine) as s:
        forget_probes(s, [context.keyring.block_hash(lot.people[0])])
        s.commit()
    assert prepare(context, asked()).lots[0].number == 2


# Verdicts and records


def test_a_method_that_passes_is_qualified_with_a_signed_record(context: Context) -> None:
    told: list[tuple[str, int, int]] = []
    prepared = prepare(context, asked("finetune"))
    (result,) = qualify(context, prepared, on_step=lambda *step: told.append(step))
    (row,) = rows(context)
    with reading(context.engine) as s:
        predicate = read_record(context, s, row)
    assert predicate is not None
    assert row.passed
    assert result.qualification.qualified
    found = find(context)
    assert isinstance(found, Qualified)
    assert found.log_index == row.log_index == result.log_index
    assert found.statement.startswith("All 3 of 3 probe subjects passed")
    assert predicate["lot"]["number"] == 1
    assert [probe["number"] for probe in predicate["probes"]] == [1, 2, 3]
    assert {check["name"] for check in predicate["probes"][0]["checks"]} == {
        "forgetting_ratio", "rejected_share", "retain_ratio", "test_ratio", "cost_share",
    }  # fmt: skip
    assert len(predicate["probes"][0]["figures"]["view_shifts"]) == len(predicate["views"]) == 10
    assert predicate["probes"][0]["figures"]["n_references"] == 8
    assert (row.expires_at - row.finished_at).days == 180  # type: ignore[operator]
    text = json.dumps(row.record) + dsse.read_payload(row.record["envelope"]).decode()  # type: ignore[index]
    for person, probe in zip(prepared.lots[0].people, row.probes, strict=True):
        assert person not in text
        assert probe["tag"] not in text
        assert probe["salt"] not in text
    assert ("retrained models", 24, 24) in told
    assert told[-1] == ("figures of finetune", 3, 3)


def test_a_second_qualification_is_lot_number_two_and_says_so(context: Context) -> None:
    qualify(context, prepare(context, asked("finetune", policy=HARD)))
    second = prepare(context, asked("finetune", policy=HARD))
    assert second.lots[0].number == 2
    (result,) = qualify(context, second)
    assert result.record["log"]["index"] == result.log_index
    with reading(context.engine) as s:
        predicate = read_record(context, s, rows(context)[-1])
    assert predicate is not None
    assert predicate["lot"]["number"] == 2


def test_models_beyond_those_asked_for_are_not_looked_at(context: Context) -> None:
    """An evaluation has drawn more references of one probe subject than the lot says."""
    prepared = prepare(context, asked("finetune", policy=HARD))
    draw_references(context, prepared.stages[prepared.lots[0].people[0]], 15, lambda done, wanted: None)
    (result,) = qualify(context, prepared)
    assert {probe.figures.n_references for probe in result.qualification.probes if probe.figures} == {8}


def test_a_method_that_fails_says_why(context: Context) -> None:
    (result,) = qualify(context, prepare(context, asked("finetune", policy=HARD)))
    assert not result.qualification.qualified
    (row,) = rows(context)
    assert row.passed is False
    assert row.reason.startswith("0 of 3 probe subjects passed")
    assert "the bar is 0 %" in row.reason


def test_a_method_that_diverges_fails(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one probe subject; the others are judged all the same."""
    prepared = prepare(context, asked("gradient_ascent"))
    victim = prepared.lots[0].people[1]
    run = forget_setup.unlearn

    def unlearn(name: str, model: Any, forget: Any, retain: Any, **how: Any) -> Any:
        if len(retain) == len(prepared.stages[victim].plan.spec.retain) and _is(prepared, victim, forget):
            raise MethodError("gradient_ascent diverged: weights that are not numbers; lower its learning rate.")
        return run(name, model, forget, retain, **how)

    monkeypatch.setattr(forget_setup, "unlearn", unlearn)
    (result,) = qualify(context, prepared)
    assert not result.qualification.qualified
    one, lost, other = result.qualification.probes
    assert lost.reason == "gradient_ascent diverged: weights that are not numbers; lower its learning rate."
    assert lost.figures is None
    assert one.figures is not None
    assert other.figures is not None
    assert f"Probe 2: {lost.reason}" in result.qualification.reasons


def _is(prepared: Prepared, person: str, forget: Any) -> bool:
    spec = prepared.stages[person].plan.spec
    faces = open_images(spec.images)
    mine = faces.images[spec.scored].transpose(0, 3, 1, 2)
    return bool((forget.images.numpy() == mine).all()) if forget.images.shape == mine.shape else False


def test_a_killed_qualification_goes_on_with_its_lot(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(context, asked("finetune", n_references=11, n_runs=11))

    def die(doing: str, done: int, wanted: int) -> None:
        if doing == "runs of methods" and 0 < done < wanted:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qualify(context, prepared, on_step=die)
    again = prepare(context, asked("finetune", n_references=11, n_runs=11))
    assert [lot.id for lot in again.lots] == [lot.id for lot in prepared.lots]
    assert again.price.n_trainings <= 1  # the original
    seeds: list[int] = []
    train = forget_setup.train
    monkeypatch.setattr(
        forget_setup, "train", lambda *args, seed, **how: seeds.append(seed) or train(*args, seed=seed, **how)
    )
    original_of.cache_clear()
    (result,) = qualify(context, again)
    assert len(seeds) <= 1
    assert result.lot.number == 1


def test_all_originals_are_one(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    train = forget_setup.train
    monkeypatch.setattr(
        forget_setup, "train", lambda *args, seed, **how: seeds.append(seed) or train(*args, seed=seed, **how)
    )
    original_of.cache_clear()
    qualify(context, prepare(context, asked("finetune", "seif", n_references=13, n_runs=13)))
    assert seeds.count(ORIGINAL_SEEDS) == 1
    assert len(set(seeds)) == len(seeds) <= 1 + N_ORIGINALS


def test_an_erasure_in_the_middle_keeps_nothing(context: Context) -> None:
    prepared = prepare(context, asked())

    def forget(doing: str, done: int, wanted: int) -> None:
        if doing.startswith("figures") and done == 0:
            with session(context.engine) as s:
                forget_probes(s, [context.keyring.block_hash(prepared.lots[0].people[0])])
                s.commit()

    with pytest.raises(DataChangedError):
        qualify(context, prepared, on_step=forget)
    (row,) = rows(context)
    assert (row.passed, row.record, len(row.probes)) == (None, None, 2)


def test_settings_that_change_in_the_middle_keep_nothing(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(context, asked())
    monkeypatch.setattr(study, "identity_of", lambda *_: None)
    with pytest.raises(ConflictError, match="Expected the settings of finetune to stay"):
        qualify(context, prepared)
    assert rows(context)[0].passed is None


def test_of_two_processes_the_first_writes(context: Context) -> None:
    prepared = prepare(context, asked())
    (first,), (second,) = qualify(context, prepared), qualify(context, prepared)
    assert first.log_index == second.log_index
    assert first.record == second.record
    with reading(context.engine) as s:
        entries = s.exec(select(LogLeaf).where(LogLeaf.kind == "qualification")).all()
    assert [entry.index for entry in entries].count(first.log_index) == 1


# Bad input


@pytest.mark.parametrize(
    ("methods", "changes", "error", "message"),
    [
        (("hope",), {}, MethodError, "Unknown method 'hope'"),
        (("retrain",), {}, InvalidInputError, "retrain is exact and needs no proof"),
        (("finetune",), {"n_probes": 2}, InvalidInputError, "at least 3 probe subjects, and 8 references"),
        (("finetune",), {"n_references": 7}, InvalidInputError, "got 3, 7 and 8"),
        (("finetune",), {"n_runs": 7}, InvalidInputError, "got 3, 8 and 7"),
    ],
)
def test_what_cannot_be_asked(methods: tuple[str, ...], changes: dict[str, int], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        asked(*methods, **changes)


def test_methods_that_read_oracles_are_named() -> None:
    assert asked("finetune", "oracle_matching").reading_oracles == ("oracle_matching",)


def test_no_method() -> None:
    with pytest.raises(InvalidInputError, match="at least one method"):
        Asked((), LAX)


def test_the_idle_worker_qualifies_what_the_ladder_has_and_nobody_knows(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(LAX, ladder=("finetune", "seif", "retrain"), qualification=True, gate_alpha=0.05)
    assert due(context, LAX) == ()
    assert due(context, policy) == ("finetune", "seif")
    seen: list[Asked] = []
    monkeypatch.setattr("service.studies.qualification.prepare", lambda context, asked: seen.append(asked))
    monkeypatch.setattr("service.studies.qualification.qualify", lambda context, prepared: [])
    _qualify_what_is_due(context, policy)
    assert [one.methods for one in seen] == [("finetune", "seif")]


# What else was looked at


def test_features_and_retained_subjects_are_measured_and_told(context: Context) -> None:
    prepared = prepare(context, asked())
    (result,) = qualify(context, prepared)
    recorded = [each["figures"]["figures"] for each in rows(context)[-1].probes]
    n_told_apart, n_measured = 0, 0
    for person, probe, shown in zip(prepared.lots[0].people, result.qualification.probes, recorded, strict=True):
        assert probe.figures is not None
        features, exposed = probe.figures.features, probe.figures.exposed
        assert exposed is not None
        assert (exposed.n_runs, exposed.n_subjects) == (8, 15)
        assert tuple(shown["exposed"]["n_more_exposed"]) == exposed.n_more_exposed
        spec = prepared.stages[person].plan.spec
        labels = open_images(spec.images).labels
        assert (features is not None) == bool(
            set(labels[spec.scored]) <= set(labels[spec.retain])
        )  # else: no such mean
        if features is None:
            assert shown["features"] is None
            continue
        assert (features.n_runs, features.n_choosing, features.n_judging, features.n_originals) == (8, 4, 4, 8)
        assert features.nothing_done is not None
        assert shown["features"]["n_told_apart"] == features.n_told_apart
        n_told_apart, n_measured = n_told_apart + features.n_told_apart, n_measured + 1
    assert n_measured > 0
    found = find(context)
    assert isinstance(found, Qualified)
    assert f"{n_told_apart} of {8 * n_measured} runs are told apart from retrained models" in " ".join(found.remarks)
    assert "of 24 runs expose retained subjects more" in " ".join(found.remarks)


def test_models_that_were_made_before_say_that_nothing_was_measured(context: Context) -> None:
    """As in a home whose banks an older version drew."""
    prepared = prepare(context, asked())
    qualify(context, prepared)
    with session(context.engine) as s:
        s.delete(s.get_one(Qualification, prepared.lots[0].id))  # so that the same lot is drawn again
        s.commit()
    for stage in prepared.stages.values():
        store = store_of(context, stage)
        for status in store.status(now=context.now()):
            for statistic in BESIDE:
                store.discard(replace(status.key, statistic=statistic))
    (result,) = qualify(context, prepare(context, asked()))
    for probe in result.qualification.probes:
        assert probe.figures is not None
        assert (probe.figures.features, probe.figures.exposed) == (None, None)
    found = find(context)
    assert isinstance(found, Qualified)
    assert found.remarks[2] == "Features: not measured. Retained subjects: not measured."


def test_a_record_without_them_says_so() -> None:
    predicate = {"probes": [{"figures": {"rejected": {}}}, {"figures": None}]}
    assert remarks(predicate)[2] == "Features: not measured. Retained subjects: not measured."


def test_an_erased_subject_leaves_no_column_of_features_and_nobody_of_the_retained_ones(context: Context) -> None:
    prepared = prepare(context, asked())
    qualify(context, prepared)
    probe, other = prepared.lots[0].people[0], prepared.lots[0].people[1]
    for person in (probe, other):
        tag = context.keyring.block_hash(person)
        held = sum((store.count_columns([tag]) for store in stores(context.settings)), Counter())
        assert held[tag, FEATURES] > 0
        assert held[tag, OTHERS] > 0
        for store in stores(context.settings):
            store.drop_subjects([tag])
        assert not sum((store.count_columns([tag]) for store in stores(context.settings)), Counter())
    left = [path for path in context.settings.evaluations_folder.rglob("*") if path.is_file()]
    tag = context.keyring.block_hash(probe)
    assert not [path for path in left if tag.encode() in path.read_bytes()]
    (result,) = qualify(context, prepare(context, asked()))  # as if both were among the data again
    assert all(each.figures is not None for each in result.qualification.probes)


def test_retained_subjects_are_whole_and_the_same_for_all_models(context: Context) -> None:
    faces = open_images(images_in_service(context, recipe_of(context)))
    retain = faces.where(split="train")
    whole = sample_of(faces, retain)
    np.testing.assert_array_equal(whole, retain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec, "SAMPLE", 10)
        some = sample_of(faces, retain)
        np.testing.assert_array_equal(some, sample_of(faces, retain))
    assert 10 <= len(some) < 10 + 3
    assert len(subjects_of(faces, some)) * 3 == len(some)
