"""The gate's benchmark: which models it plans, whose margins it takes, and rates that are known beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.gate import by_share, named, show
from benchmarks.gates.curves import Curve, curves
from benchmarks.gates.judging import judge, pooled_of_others, summary
from benchmarks.gates.models import IN, OUT, RUNS, SHARES, Margins, Model, Set, margins_of, planned
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
    runs = list(planned(small, n_runs=2, blocks={1, 3}))
    assert {m.kind for m in runs} == set(RUNS)
    assert len(runs) == len(set(runs)) == 2 * 2 * len(RUNS)


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


def test_a_model_without_margins_of_the_population_is_trained_again_only_where_they_are_wanted(
    small: Set, tmp_path: Path
) -> None:
    model, folder = Model("drawn", OUT, 0, 0), small.folder(tmp_path)
    model.file(folder).parent.mkdir(parents=True)
    np.save(model.file(folder), np.zeros((4, 6)))
    assert model.is_there(folder)
    assert not model.is_there(folder, population=True)
    model.population_file(folder).parent.mkdir(parents=True)
    np.save(model.population_file(folder), np.zeros((4, 6)))
    assert model.is_there(folder, population=True)
    assert len(margins_of(small, tmp_path)) == len(small.blocks[0])  # the population's file is no model


def _known(small: Set, rng: np.random.Generator, n_out: int = 20) -> list[Margins]:
    """IN far above OUT, a half of the way likewise; a method that forgets, and one that pushes far below."""
    subjects = []
    for block, people in enumerate(small.blocks):
        for subject in people:
            out, in_ = rng.normal(size=(n_out, 2, 3)), rng.normal(size=(6, 2, 3)) + 30
            others = {
                "between-25": rng.normal(size=(2, 2, 3)),
                "between-50": rng.normal(size=(2, 2, 3)) + 30,
                "between-75": rng.normal(size=(2, 2, 3)) + 30,
                "method-remix": rng.normal(size=(12, 2, 3)),
                "method-kookmin": rng.normal(size=(12, 2, 3)) - 30,
            }
            subjects.append(Margins(subject, block, out, in_, others))
    return subjects


def test_rates_of_what_is_known_come_out(small: Set, capsys: pytest.CaptureFixture[str]) -> None:
    """IN far above OUT is always rejected; OUT among its like hardly ever; a half of the way in between."""
    rng = np.random.default_rng(0)
    subjects = _known(small, rng)
    pools = pooled_of_others(subjects, subjects, 8)
    assert set(pools) == {0, 1, 2, 3}
    rows = [judge(subject, 8, pools[subject.block], rng) for subject in subjects]
    found = summary(small, 8, "pooled", rows)
    strongest = found["classes"][0]
    assert strongest["n_subjects"] == len(subjects)
    assert strongest["power"] == strongest["others"]["between-50"]["any"] == 1.0
    assert strongest["stated"] > 0.99
    assert strongest["others"]["between-25"]["any"] < 0.2
    assert strongest["others"]["method-remix"]["any"] < 0.2
    assert abs(strongest["others"]["method-remix"]["shift"]) < 1
    assert strongest["others"]["method-kookmin"]["lower"] == 1.0
    assert strongest["others"]["method-kookmin"]["upper"] == 0.0
    assert strongest["others"]["method-kookmin"]["shift"] < -10
    assert found["false_positive_rate"] < 0.1
    assert found["n_retrained"] == 20 * len(small.blocks)
    assert found["interval"][0] <= found["false_positive_rate"] <= found["interval"][1]
    picture = by_share(found)
    assert picture is not None
    assert "1.00 at 0.5" in picture
    show(found)
    named(found)
    told = capsys.readouterr().out
    assert "method-kookmin: above 0.00, below 1.00" in told
    assert told.count("d′") == 1 + len(subjects)


def test_a_run_is_not_judged_by_models_that_a_method_has_seen(small: Set) -> None:
    """Of 66 OUT models the last 16 are another world; runs are judged as if they were not there."""
    rng = np.random.default_rng(0)
    subject = _known(small, rng, n_out=66)[0]
    subject.out[50:] += 1000
    found = judge(subject, 16, None, rng)
    assert found.others["method-remix"].any < 0.2
    assert found.others["method-kookmin"].lower == 1.0
    assert found.others["between-50"].upper < 0.5  # its references are of both worlds and scatter widely
    assert not set(RUNS) & set(judge(subject, 64, None, rng).others)


def test_a_line_of_a_drawing_passes_through_its_points_and_names_do_not_meet() -> None:
    lines = [
        Curve("first", "unlearned", ((0.0, 0.0), (1.0, 1.0))),
        Curve("second", "original", ((0.0, 0.5), (1.0, 1.0))),
    ]
    drawn = curves(lines, x_axis="a < b", y_axis="rate", name="x", title="t")
    assert 'd="M70.0 324.0L520.0 24.0"' in drawn
    assert "a &lt; b" in drawn
    heights = [float(part.split('"')[0]) for part in drawn.split('class="label" x="534.0" y="')[1:]]
    assert heights[1] - heights[0] >= 18
