"""The gate's benchmark: which models it plans, whose margins it takes, and rates that are known beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.gate import judge, pooled_of_others, summary
from benchmarks.gates.models import IN, OUT, SHARES, Margins, Model, Set, margins_of, planned
from unlearning.faces import Faces
from unlearning.faces.sources import synthetic


@pytest.fixture
def small() -> Set:
    """Eight drawn subjects of three images in blocks of two."""
    faces: Faces = synthetic.draw(n_subjects=10, images_per_subject=3, size=(8, 8), seed=0)
    people = faces.train_subjects()
    blocks = tuple(tuple(people[i : i + 2]) for i in range(0, 8, 2))
    return Set("drawn", "synthetic_small", faces, blocks, tuning=people)


def test_every_block_gets_a_model_before_any_gets_two(small: Set) -> None:
    models = list(planned(small, n_in=1, n_out=2, n_between=1))
    assert [m.block for m in models if m.kind == OUT] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [m.number for m in models if m.kind == OUT] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert sum(m.kind == IN for m in models) == 1
    assert sum(m.kind in SHARES for m in models) == 4 * len(SHARES)
    assert len({(m.kind, m.block, m.number) for m in models}) == len(models)
    assert {m.block for m in planned(small, n_in=0, n_out=1, n_between=1, blocks={2})} == {2}


def test_a_subject_has_the_margins_of_its_own_images(small: Set, tmp_path: Path) -> None:
    """Every margin is the number of its image, so that a wrong column shows."""
    folder = small.folder(tmp_path)
    for number in range(2):
        for model, rows in (
            (Model("drawn", IN, 0, number), small.rows),
            (Model("drawn", OUT, 1, number), small.rows_of(1)),
        ):
            file = model.file(folder)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.tile(rows + 1000.0 * number, (4, 1)).astype(np.float32))
    found = margins_of(small, tmp_path)
    assert [one.subject for one in found] == list(small.blocks[1])  # others have no OUT models yet
    for one in found:
        own = small.faces.where(split="train", subjects=[one.subject])
        assert one.out.shape == one.in_.shape == (2, 4, 3)
        for number in range(2):
            assert (one.out[number] == own + 1000.0 * number).all()
            assert (one.in_[number] == own + 1000.0 * number).all()


def test_another_block_or_face_is_another_folder(small: Set, tmp_path: Path) -> None:
    other = Set("drawn", "synthetic_small", small.faces, small.blocks[::-1], tuning=())
    assert other.folder(tmp_path) != small.folder(tmp_path)


def test_rates_of_what_is_known_come_out(small: Set) -> None:
    """IN far above OUT is always rejected; OUT among its like hardly ever; a half of the way in between."""
    rng = np.random.default_rng(0)
    subjects = []
    for block, people in enumerate(small.blocks):
        for subject in people:
            out, in_ = rng.normal(size=(20, 2, 3)), rng.normal(size=(6, 2, 3)) + 30
            subjects.append(Margins(subject, block, out, in_, {"between-50": rng.normal(size=(2, 2, 3)) + 30}))
    pools = pooled_of_others(subjects, subjects, 8)
    assert set(pools) == {0, 1, 2, 3}
    rows = [judge(subject, 8, pools[subject.block], rng) for subject in subjects]
    found = summary(small, 8, "pooled", rows)
    assert found["classes"][0]["n_subjects"] == len(subjects)
    assert found["classes"][0]["power"] == found["classes"][0]["between"]["between-50"] == 1.0
    assert found["classes"][0]["stated"] > 0.99
    assert found["false_positive_rate"] < 0.1
    assert found["n_retrained"] == 20 * len(small.blocks)
    assert found["interval"][0] <= found["false_positive_rate"] <= found["interval"][1]
