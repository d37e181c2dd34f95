"""Views: against loops over pixels, and the same bytes everywhere."""

import math
from hashlib import sha256

import numpy as np
import pytest

from unlearning.errors import FacesError
from unlearning.faces.views import DEGREES, VERSION, VIEWS, views


def some_images(n: int = 3, height: int = 24, width: int = 20, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def seen(images: np.ndarray, name: str) -> np.ndarray:
    return views(images)[list(VIEWS).index(name)]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_view_has_the_shape_of_the_images_and_the_first_is_the_images(channels: int) -> None:
    images = some_images(channels=channels)
    before = images.copy()
    found = views(images)
    assert found.shape == (len(VIEWS), *images.shape)
    assert found.dtype == np.uint8
    assert (found[0] == images).all()
    assert (images == before).all()
    for one, name in zip(found[1:], list(VIEWS)[1:], strict=True):
        assert (one != images).any(), name


def test_each_image_is_seen_alone() -> None:
    images = some_images(300, 8, 8)
    assert (views(images)[:, [0, 7, 299]] == views(images[[0, 7, 299]])).all()


def test_mirrored_twice_is_as_it_is() -> None:
    images = some_images()
    assert (seen(seen(images, "mirrored"), "mirrored") == images).all()


@pytest.mark.parametrize(
    ("name", "down", "right"),
    [("shifted up", -1, 0), ("shifted down", 1, 0), ("shifted left", 0, -1), ("shifted right", 0, 1)],
)
@pytest.mark.parametrize(("size", "step"), [((24, 20), 1), ((64, 52), 2), ((9, 8), 1)])
def test_a_shift_moves_every_pixel_and_repeats_the_border(name, down, right, size, step) -> None:
    images = some_images(2, *size)
    found = seen(images, name)
    for y in range(size[0]):
        for x in range(size[1]):
            from_y = min(max(y - down * step, 0), size[0] - 1)
            from_x = min(max(x - right * step, 0), size[1] - 1)
            assert (found[:, y, x] == images[:, from_y, from_x]).all()


@pytest.mark.parametrize(("name", "degrees"), [("turned left", DEGREES), ("turned right", -DEGREES)])
def test_a_turn_is_bilinear_about_the_middle(name: str, degrees: float) -> None:
    images = some_images(2, 12, 10)
    found = seen(images, name)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for i in range(2):
        for y in range(12):
            for x in range(10):
                v, u = y - 5.5, x - 4.5
                row = min(max(cosine * v + sine * u + 5.5, 0.0), 11.0)
                column = min(max(cosine * u - sine * v + 4.5, 0.0), 9.0)
                top, left = int(row), int(column)
                total = 0.0
                for a, weight_a in ((top, 1 - (row - top)), (min(top + 1, 11), row - top)):
                    for b, weight_b in ((left, 1 - (column - left)), (min(left + 1, 9), column - left)):
                        total += weight_a * weight_b * int(images[i, a, b, 0])
                assert abs(int(found[i, y, x, 0]) - total) <= 0.5 + 1e-9


def test_turned_left_moves_the_right_side_up() -> None:
    image = np.zeros((1, 21, 21, 1), dtype=np.uint8)
    image[0, 10, 18] = 255
    assert seen(image, "turned left")[0, :10, 17:].sum() > 0
    assert seen(image, "turned right")[0, 11:, 17:].sum() > 0


def test_light_is_multiplied_rounded_and_clipped() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    lighter, darker = (seen(ramp, name).ravel() for name in ("lighter", "darker"))
    for level in range(256):
        assert lighter[level] == min(math.floor(level * 1.2 + 0.5 - 1e-9), 255)
        assert darker[level] == math.floor(level * 0.8 + 0.5 - 1e-9)


def test_an_even_image_stays_even() -> None:
    even = np.full((1, 16, 16, 3), 100, dtype=np.uint8)
    for name in VIEWS:
        expected = {"lighter": 120, "darker": 80}.get(name, 100)
        assert (seen(even, name) == expected).all(), name


def test_the_pixels_of_this_version() -> None:
    """Margins are kept under `VERSION`: whoever changes a view changes it, then this digest."""
    y, x = np.mgrid[:24, :20]
    pattern = ((7 * y + 13 * x + y * x) % 256).astype(np.uint8)[None, :, :, None]
    digest = sha256(views(pattern).tobytes()).hexdigest()
    assert (VERSION, digest[:16]) == (1, "7b865223edafb21c")


@pytest.mark.parametrize(
    "images", [np.zeros((2, 8, 8, 1)), np.zeros((8, 8, 1), dtype=np.uint8), np.zeros((2, 0, 8, 1), dtype=np.uint8)]
)
def test_other_arrays_are_refused(images: np.ndarray) -> None:
    with pytest.raises(FacesError, match="uint8 \\(n, height, width, channels\\), got"):
        views(images)
