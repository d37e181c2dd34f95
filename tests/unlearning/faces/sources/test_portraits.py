"""The painter: masks have the right area, faces follow their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from unlearning.faces.sources.portraits import N_POSE, N_TRAITS, Canvas, draw_faces


def canvas(n: int = 1, side: int = 64) -> Canvas:
    pixel = 2 / side
    line = (np.arange(side, dtype=np.float32) + 0.5) * np.float32(pixel) - 1
    v, u = np.meshgrid(line, line, indexing="ij")
    made = Canvas(np.repeat(u[None], n, 0), np.repeat(v[None], n, 0), pixel)
    made.planes[...] = 100
    return made


@pytest.mark.parametrize(("width", "height"), [(0.5, 0.5), (0.7, 0.3), (0.2, 0.1)])
def test_an_ellipse_covers_its_area(width, height):
    made = canvas()
    mask = made.ellipse(0.1, -0.1, width, height)
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert mask.sum() * made.pixel**2 == pytest.approx(np.pi * width * height, rel=0.05)


@pytest.mark.parametrize("thickness", [0.2, 0.05, 0.005])
def test_a_stroke_covers_its_area_even_when_thinner_than_a_pixel(thickness):
    made = canvas()
    areas = [made.stroke(line, thickness).sum() * made.pixel**2 for line in np.linspace(0.1, 0.2, 21)]
    assert np.mean(areas) == pytest.approx(2 * thickness, rel=0.05)


def test_above_splits_the_image():
    made = canvas()
    assert made.above(0.5).mean() == pytest.approx(0.75, abs=0.01)


def test_paint_and_darken():
    made = canvas(n=2)
    made.paint(np.full((2, 64, 64), 0.5, dtype=np.float32), np.array([[200, 100, 0], [0, 0, 0]], dtype=np.float32))
    np.testing.assert_allclose(made.planes[:, 0, 0, 0], [150, 100, 50])
    np.testing.assert_allclose(made.planes[:, 1, 0, 0], [50, 50, 50])
    made.darken(np.full((2, 64, 64), 0.1, dtype=np.float32))
    np.testing.assert_allclose(made.planes[:, 0, 0, 0], [135, 90, 45])


def numbers(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.random((n, N_TRAITS)), rng.random(n), rng.random((n, N_POSE))


def test_faces_do_not_depend_on_their_neighbours():
    traits, ages, poses = numbers(6)
    together = draw_faces(traits, ages, poses, size=(24, 20))
    assert together.shape == (3, 6, 24, 20)
    assert together.dtype == np.float32
    for i in range(6):
        one = slice(i, i + 1)
        alone = draw_faces(traits[one], ages[one], poses[one], size=(24, 20))
        np.testing.assert_allclose(alone[:, 0], together[:, i], atol=1e-2)


def test_every_number_is_used():
    traits, _, poses = numbers(60, seed=1)
    ages = np.linspace(0, 1, 60)
    plain = draw_faces(traits, ages, poses, size=(32, 32))
    for block in (traits, poses):
        for column in range(block.shape[1]):
            kept = block[:, column].copy()
            block[:, column] = (kept + 0.5) % 1
            changed = draw_faces(traits, ages, poses, size=(32, 32))
            block[:, column] = kept
            assert np.abs(changed - plain).max() > 5, column


def test_age_shows():
    """Old and young faces of the same people and poses differ, in hair most of all."""
    traits, _, poses = numbers(64, seed=2)
    young, old = (draw_faces(traits, np.full(64, age), poses, size=(32, 32)) for age in (0.3, 0.95))
    assert np.abs(young - old).mean() > 8
    assert old[:, :, 4:8, 12:20].mean() > young[:, :, 4:8, 12:20].mean() + 20  # grey or bald on top
