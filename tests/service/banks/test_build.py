from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import unlearning
from service.banks import build
from service.banks.blocks import BLOCK_SHARE, blocks, forget_from_blocks
from service.banks.build import TRAINING_CODE, build_bank, columns_of, example_ids
from service.banks.store import BankStore, ReferenceRow
from service.errors import ConflictError
from service.training.jobs import release_processes, run_trial
from service.training.spec import open_images
from tests.service import tiny
from unlearning.faces import remove_subjects
from unlearning.faces.sources import synthetic


def faces_of(n_people):
    """Made-up people, all in the training split."""
    faces = synthetic.draw(n_subjects=n_people, images_per_subject=1, size=(8, 8))
    return replace(faces, split_of=np.zeros(len(faces), dtype=np.uint8))


def blocks_of(context, n_people):
    return blocks(context.settings, context.keyring, faces_of(n_people))


def sizes(assigned):
    return Counter(assigned.values()).values()


def people_in(context, plan, rows):
    """User ids behind row numbers of a bank's plan."""
    return set(open_images(plan.spec.images).subjects[rows].tolist())


def test_no_block_holds_more_than_its_share(context):
    assigned = blocks_of(context, 100)
    assert len(assigned) == 100
    assert max(sizes(assigned)) == BLOCK_SHARE * 100


def test_a_few_people_are_blocks_of_their_own(context):
    assert set(sizes(blocks_of(context, 12))) == {1}


def test_blocks_stay_when_people_come_and_go(context):
    before = blocks_of(context, 40)
    more = blocks_of(context, 60)
    assert {tag: more[tag] for tag in before} == before
    assert len(more) == 60
    assert set(before.values()).isdisjoint(more[tag] for tag in more.keys() - before.keys())
    assert max(sizes(more)) <= BLOCK_SHARE * 60
    assert blocks_of(context, 20) == more


def test_the_block_list_names_nobody_and_forgets_the_erased(context):
    assigned = blocks_of(context, 40)
    stored = (context.settings.banks_folder / "blocks.json").read_text()
    assert not any(synthetic.user_id(person) in stored for person in range(40))
    gone = context.keyring.block_hash(synthetic.user_id(3))
    forget_from_blocks(context.settings, [gone])
    forget_from_blocks(context.settings, [gone])
    left = json.loads((context.settings.banks_folder / "blocks.json").read_text())
    assert left == {tag: block for tag, block in assigned.items() if tag != gone}


def test_people_of_one_block_share_a_bank_that_never_saw_the_block(tiny_context):
    a, b = tiny.same_block(tiny_context)
    plan = tiny.plan_for(tiny_context, a)
    assert tiny.plan_for(tiny_context, b).key == tiny.plan_for(tiny_context, a, b).key == plan.key
    assert people_in(tiny_context, plan, plan.spec.scored) == {a, b}
    assert people_in(tiny_context, plan, plan.spec.retain) == set(tiny.people(tiny_context)) - {a, b}
    assert people_in(tiny_context, plan, plan.spec.test) == set(tiny.people(tiny_context, "test"))
    assert set(plan.tags) == {tiny_context.keyring.block_hash(person) for person in (a, b)}


def test_people_of_several_blocks_get_a_bank_of_their_own(tiny_context):
    a, b = tiny.same_block(tiny_context)
    other = next(person for person in tiny.people(tiny_context) if person not in (a, b))
    plan = tiny.plan_for(tiny_context, a, other)
    assert people_in(tiny_context, plan, plan.spec.scored) == {a, other}
    assert b in people_in(tiny_context, plan, plan.spec.retain)


def test_the_bank_stays_when_another_of_its_block_is_erased(tiny_context):
    a, b = tiny.same_block(tiny_context)
    plan = tiny.plan_for(tiny_context, a)
    bank, _ = tiny.build(tiny_context, plan)
    release_processes()
    remove_subjects(tiny_context.settings.data_folder, [a])
    tag = tiny_context.keyring.block_hash(a)
    BankStore(tiny_context.settings.banks_folder).drop_subject(tag)
    forget_from_blocks(tiny_context.settings, [tag])
    after = tiny.plan_for(tiny_context, b)
    assert after.key == plan.key
    rest, told = tiny.build(tiny_context, after)
    assert told == [(4, 4)]
    np.testing.assert_array_equal(columns_of(rest, after.example_ids), columns_of(bank, after.example_ids))


def relabel(context, person):
    other = {"young": "old", "old": "young"}
    tiny.change_table(
        context.settings, lambda row: row | ({"label": other[row["label"]]} if row["user_id"] == person else {})
    )


CHANGES = {
    "pixel": lambda context, person: tiny.repaint(tiny.images_of(context, person)[0]),
    "label": relabel,
    "image": tiny.add_image,
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("change", CHANGES)
def test_another_bank_after_any_change_of_what_it_rests_on(tiny_context, split, change):
    a, b = tiny.same_block(tiny_context)
    before = tiny.plan_for(tiny_context, a).key
    other = next(person for person in tiny.people(tiny_context, split) if person not in (a, b))
    CHANGES[change](tiny_context, other)
    assert tiny.plan_for(tiny_context, a).key != before


@pytest.mark.parametrize("change", ["pixel", "image"])
def test_the_same_bank_after_a_change_of_the_forget_set(tiny_context, change):
    a, _ = tiny.same_block(tiny_context)
    before = tiny.plan_for(tiny_context, a)
    CHANGES[change](tiny_context, a)
    after = tiny.plan_for(tiny_context, a)
    assert after.key == before.key
    assert after.example_ids != before.example_ids


def test_another_bank_with_another_recipe(tiny_context):
    a, _ = tiny.same_block(tiny_context)
    before = tiny.plan_for(tiny_context, a).key
    (tiny_context.settings.home / "recipe.json").write_text(json.dumps(tiny.RECIPE | {"epochs": 4}))
    assert tiny.plan_for(tiny_context, a).key != before


def test_another_bank_with_other_code(tiny_context, monkeypatch):
    a, _ = tiny.same_block(tiny_context)
    before = tiny.plan_for(tiny_context, a).key
    monkeypatch.setattr(build, "training_code_version", lambda: "1" * 64)
    assert tiny.plan_for(tiny_context, a).key != before


def test_the_code_version_covers_all_that_training_imports():
    folder, found, open_ = Path(unlearning.__file__).parent, set(), ["training.py"]
    while open_:
        name = open_.pop()
        found.add(name)
        imported = re.findall(r"^from unlearning\.(\w+) import", (folder / name).read_text(), re.MULTILINE)
        open_ += [f"{module}.py" for module in imported if f"{module}.py" not in found]
    assert found - {"errors.py"} == set(TRAINING_CODE)


def test_people_who_wait_are_not_trained_on(tiny_context):
    a, b = tiny.same_block(tiny_context)
    waiting = next(person for person in tiny.people(tiny_context) if person not in (a, b))
    plan = tiny.plan_for(tiny_context, a, absent=(waiting,))
    assert waiting not in people_in(tiny_context, plan, plan.spec.retain)
    assert plan.key != tiny.plan_for(tiny_context, a).key
    assert tiny.plan_for(tiny_context, a, absent=(b,)).key == tiny.plan_for(tiny_context, a).key


def test_a_bank_built_ahead_is_preferred_while_nothing_is_to_be_trained_for_it(tiny_context):
    a, b = tiny.same_block(tiny_context)
    waiting = next(person for person in tiny.people(tiny_context) if person not in (a, b))
    ahead = tiny.plan_for(tiny_context, a)
    tiny.build(tiny_context, ahead)

    def plan(**bar):
        return tiny.plan_for(tiny_context, a, absent=(waiting,), **bar)

    found = plan(n_models=4, staleness_max=BLOCK_SHARE)
    assert (found.key, found.staleness.n_learned, found.staleness.n_learned_gone) == (ahead.key, 38, 1)
    assert found.staleness.share == 1 / 38
    assert waiting not in people_in(tiny_context, found, found.spec.retain)
    for bar in ({"n_models": 5, "staleness_max": BLOCK_SHARE}, {"n_models": 4, "staleness_max": 0.02}, {"n_models": 4}):
        larger = plan(**bar)
        assert larger.key != ahead.key
        assert larger.staleness.share == 0
    tiny.add_image(tiny_context, a)
    assert plan(n_models=4, staleness_max=BLOCK_SHARE).key != ahead.key


def test_a_killed_build_goes_on_with_the_missing_models(tiny_context):
    a, _ = tiny.same_block(tiny_context)
    plan, store = tiny.plan_for(tiny_context, a), BankStore(tiny_context.settings.banks_folder)

    def die(done, wanted):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bank(store, plan, 4, tiny_context.settings, die, now=tiny_context.now())
    assert store.find(plan.key, n_models=4) is None
    bank, told = tiny.build(tiny_context, plan)
    assert told == [(2, 4), (3, 4), (4, 4)]
    assert bank.margins.shape == (4, 2 * tiny.N_IMAGES)
    for seed, margins in zip(bank.seeds, bank.margins, strict=True):  # as if it had never been killed
        np.testing.assert_array_equal(margins, run_trial(plan.spec, int(seed)).margins)


def test_a_bank_that_is_there_trains_nothing_and_grows_by_what_is_missing(tiny_context):
    a, _ = tiny.same_block(tiny_context)
    plan = tiny.plan_for(tiny_context, a)
    small, _ = tiny.build(tiny_context, plan)
    again, told = tiny.build(tiny_context, plan)
    assert told == [(4, 4)]
    np.testing.assert_array_equal(again.margins, small.margins)
    large, told = tiny.build(tiny_context, plan, 5)
    assert told == [(4, 5), (5, 5)]
    np.testing.assert_array_equal(large.margins[:4], small.margins)


def test_a_bank_that_lacks_a_new_image_is_built_anew(tiny_context):
    a, _ = tiny.same_block(tiny_context)
    before = tiny.plan_for(tiny_context, a)
    tiny.build(tiny_context, before)
    tiny.add_image(tiny_context, a)
    plan = tiny.plan_for(tiny_context, a)
    assert plan.key == before.key
    bank, told = tiny.build(tiny_context, plan)
    assert told[0] == (0, 4)
    assert columns_of(bank, plan.example_ids).shape == (4, 2 * tiny.N_IMAGES + 1)


def test_columns_come_in_the_order_asked_for(tiny_context):
    a, _ = tiny.same_block(tiny_context)
    plan = tiny.plan_for(tiny_context, a)
    bank, _ = tiny.build(tiny_context, plan)
    asked = plan.example_ids[::-2]
    np.testing.assert_array_equal(columns_of(bank, asked), bank.margins[:, ::-2])


def test_equal_images_of_one_person_get_different_names():
    faces = faces_of(3)
    same = replace(faces, images=np.repeat(faces.images[:1], 3, axis=0), labels=np.zeros(3, dtype=np.int64))
    names = example_ids(same, [0, 1, 2])
    assert len(set(names)) == 3
    assert names == (names[0], f"{names[0]}-2", f"{names[0]}-3")
    assert example_ids(replace(same, labels=np.array([0, 1, 0])), [0, 1])[1] != f"{names[0]}-2"


def test_builders_at_once_share_the_work(tiny_context):
    a, _ = tiny.same_block(tiny_context)
    plan, told = tiny.plan_for(tiny_context, a), []
    store = BankStore(tiny_context.settings.banks_folder)

    def other(done, wanted):
        told.append(done)
        if done == 1:  # the first model is ready, this builder is at its second
            claim = store.claim(plan.key, 3)
            assert claim is not None
            store.add(plan.key, replace(bank_row(plan, 3), seconds=77.0))
            claim.release()

    bank = build_bank(store, plan, 4, tiny_context.settings, other, now=tiny_context.now())
    assert told == [0, 1, 2, 3, 4]
    assert bank.seconds[3] == 77.0


def bank_row(plan, seed):
    outcome = run_trial(replace(plan.spec, with_views=True), seed)
    return ReferenceRow(seed, plan.example_ids, outcome.views, outcome.retain_accuracy, outcome.test_accuracy, 0.0)


def test_a_builder_waits_for_what_another_one_trains_and_takes_over_if_that_ends(tiny_context):
    a, _ = tiny.same_block(tiny_context)
    plan, store = tiny.plan_for(tiny_context, a), BankStore(tiny_context.settings.banks_folder)
    claim = store.claim(plan.key, 2)
    assert store.claim(plan.key, 2) is None

    def let_go(done, wanted):
        if done == 3:
            claim.release()  # as the kernel does for a killed builder

    bank = build_bank(store, plan, 4, tiny_context.settings, let_go, now=tiny_context.now())
    assert bank.seeds.tolist() == [0, 1, 2, 3]


def test_nobody_but_the_run_replaces_a_bank_that_its_plan_names(tiny_context):
    """The bank lacks an image that came after the plan; its key is the same."""
    a, _ = tiny.same_block(tiny_context)
    tiny.build(tiny_context, tiny.plan_for(tiny_context, a))
    run_id = tiny.claim_run(tiny_context, a)
    named = tiny.workspace(tiny_context, run_id).make_plan().bank
    tiny.add_image(tiny_context, a)
    plan = tiny.plan_for(tiny_context, a)
    assert named["key"] == vars(plan.key)
    with pytest.raises(ConflictError, match="build it when the run ended"):
        tiny.build(tiny_context, plan)
    store = BankStore(tiny_context.settings.banks_folder)
    assert store.find(plan.key, n_models=4).example_ids == tuple(named["example_ids"])
    bank = build_bank(store, plan, 4, tiny_context.settings, lambda *_: None, now=tiny_context.now(), run_id=run_id)
    assert set(bank.example_ids) == set(plan.example_ids)
