from __future__ import annotations

import json

import numpy as np
import pytest

from service.banks.store import BankStore
from service.errors import InvalidInputError
from service.studies import block_bias
from service.studies.block_bias import EXACT_SEEDS, Sizes, validate_own, validate_synthetic, write_report
from tests.service import tiny

SIZES = Sizes(n_people=2, n_models=8, n_controls=1)


def silent(number, n_banks):
    return lambda done, wanted: None


def test_own_people_are_judged_by_nested_blocks(tiny_context, tmp_path):
    waiting = tiny.people(tiny_context)[0]
    tiny.file(tiny_context, waiting)
    told = []

    def on_bank(number, n_banks):
        return lambda done, wanted: told.append((number, n_banks, done))

    curve = validate_own(tiny_context, SIZES, on_bank)
    assert curve.n_people == 39  # who waits is in no model
    assert [(point.kind, len(point.people)) for point in curve.points] == [
        ("exact", 1), ("block", 2), ("block", 2), ("block", 2),
    ]  # fmt: skip
    assert [point.share for point in curve.points] == [1 / 39, 2 / 39, 4 / 39, 8 / 39]
    store = BankStore(tiny_context.settings.evaluations_folder / "validation")
    statuses = store.status(now=tiny_context.now())
    assert sorted(status.n_models for status in statuses) == [8, 8, 8, 8, 16]
    (control,) = (store.find(status.key, n_models=16) for status in statuses if status.n_models == 16)
    assert np.flatnonzero(control.seeds >= EXACT_SEEDS).size == 8
    told.clear()
    assert validate_own(tiny_context, SIZES, on_bank) == curve
    assert {done for _, _, done in told} == {8}  # nothing was trained again
    paths = write_report([curve], tiny_context.settings, tmp_path / "report")
    assert [path.name for path in paths] == ["references.json", "references.svg", "references.md"]
    assert len(json.loads(paths[0].read_text())["curves"][0]["points"]) == 4
    text = "".join(path.read_text() for path in paths)
    assert not any(person in text for person in tiny.people(tiny_context))


def test_an_erasure_reaches_the_validation_s_banks(tiny_context):
    from service.banks.build import stores

    validate_own(tiny_context, Sizes(n_people=1, n_models=8, n_controls=0), silent)
    assert any(store.any() for store in stores(tiny_context.settings))
    folders = [store.folder.name for store in stores(tiny_context.settings)]
    assert "validation" in folders


def test_drawn_faces_have_a_home_of_their_own(tiny_context, monkeypatch):
    for name, value in {
        "N_SYNTHETIC": 20,
        "N_GONE": 4,
        "N_IMAGES": 2,
        "SHARES": (0.1,),
        "STALE_SHARES": (0.2,),
    }.items():
        monkeypatch.setattr(block_bias, name, value)
    monkeypatch.setitem(block_bias.SYNTHETIC_RECIPE, "width", 4)
    monkeypatch.setitem(block_bias.SYNTHETIC_RECIPE, "epochs", 1)
    curve = validate_synthetic(tiny_context.settings, SIZES, silent)
    assert [(point.kind, point.share) for point in curve.points] == [("exact", 0.05), ("block", 0.1), ("stale", 0.2)]


def test_too_few_people(tiny_context):
    tiny.change_table(
        tiny_context.settings, lambda row: row | ({"split": "test"} if row["user_id"] > "p0000008" else {})
    )
    with pytest.raises(InvalidInputError, match="at least 10 people"):
        validate_own(tiny_context, SIZES, silent)
