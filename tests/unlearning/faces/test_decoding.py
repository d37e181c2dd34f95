"""From bytes to pixels: shapes, colours, orientation, caps, and hostile bytes."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.unlearning.faces.folders import image_file
from unlearning.errors import ImageError, ImageTooLargeError
from unlearning.faces.decoding import MAX_BYTES, check_image, decode


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_right_size_comes_back_exactly(channels):
    data = image_file(1, size=(9, 7), channels=channels)
    pixels = decode(data, size=(9, 7), channels=channels)
    expected = np.random.default_rng(1).integers(1, 256, size=(9, 7) if channels == 1 else (9, 7, 3), dtype=np.uint8)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected.reshape(9, 7, channels))


def test_a_phone_s_jpeg_with_a_second_image_is_its_first():
    first, second = Image.new("RGB", (40, 30), (200, 100, 50)), Image.new("RGB", (40, 30))
    phone_s = encoded(first, "MPO", save_all=True, append_images=[second])
    check_image(phone_s)
    expected = decode(encoded(first, "JPEG"), size=(15, 20), channels=3)
    np.testing.assert_array_equal(decode(phone_s, size=(15, 20), channels=3), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_formats(kind, mode):
    image = Image.new(mode, (40, 30), 120 if mode == "L" else (120, 120, 120))
    pixels = decode(encoded(image, kind), size=(15, 20), channels=3)
    assert pixels.shape == (15, 20, 3)
    assert np.abs(pixels.astype(int) - 120).max() <= 2


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK"])
def test_colour_models_are_converted(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    assert decode(encoded(image, kind), size=(8, 8), channels=3).min() >= 250
    check_image(encoded(image, kind))


def test_a_palette_with_transparency():
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30] * 256)
    data = encoded(image, transparency=bytes(range(256)))
    np.testing.assert_array_equal(decode(data, size=(4, 4), channels=3)[0, 0], [10, 20, 30])


def test_grey_is_luma():
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    assert decode(encoded(image), size=(4, 4), channels=1)[0, 0, 0] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


def test_downsizing_averages_instead_of_skipping_pixels():
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = decode(encoded(Image.fromarray(checkers)), size=(8, 8), channels=1)
    assert np.abs(pixels.astype(int) - 127).max() <= 3


def test_a_large_jpeg_decoded_small_first_looks_the_same():
    rng = np.random.default_rng(5)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize(
        (640, 360), Image.Resampling.BICUBIC
    )
    pixels = decode(encoded(smooth, "JPEG", quality=95), size=(32, 32), channels=3)
    expected = np.asarray(smooth.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(pixels.astype(int) - expected).mean() < 2


def test_a_phone_s_orientation_is_applied():
    image = Image.new("L", (20, 10), 0)
    image.paste(255, (0, 0, 10, 10))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: left becomes top
    pixels = decode(encoded(image, "JPEG", exif=exif), size=(20, 10), channels=1)
    assert pixels[:8].mean() > 250
    assert pixels[-8:].mean() < 5


@pytest.mark.parametrize("look", [check_image, lambda data: decode(data, size=(8, 8), channels=1)])
@pytest.mark.parametrize("data", [b"", b"GIF89a", b"%PDF-1.7", image_file(0)[:40], image_file(0, kind="JPEG")[:200]])
def test_what_is_no_whole_image(look, data):
    with pytest.raises(ImageError, match="Expected"):
        look(data)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(kind):
    with pytest.raises(ImageError, match="JPEG, PNG or WebP"):
        decode(encoded(Image.new("L", (8, 8)), kind), size=(8, 8), channels=1)


def test_deep_colours_are_refused_rather_than_clipped():
    deep = Image.fromarray(np.full((8, 8), 30000, dtype=np.uint16))
    with pytest.raises(ImageError, match="8 bits"):
        decode(encoded(deep), size=(8, 8), channels=1)


def test_too_many_bytes():
    with pytest.raises(ImageTooLargeError, match="bytes"):
        decode(b"\x89PNG" + bytes(MAX_BYTES), size=(8, 8), channels=1)


@pytest.mark.parametrize("side", [6_000, 12_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side):
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    with pytest.raises(ImageTooLargeError, match="25,000,000 pixels"):
        decode(bomb, size=(8, 8), channels=1)


SEEDS = [image_file(3, kind=kind, channels=channels) for kind in ("PNG", "JPEG", "WEBP") for channels in (1, 3)]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.integers(0, 10_000), st.binary(max_size=6), st.integers(0, 10_000))
@pytest.mark.filterwarnings("ignore")  # PIL warns of odd metadata; here only errors matter
def test_damaged_bytes_are_pixels_or_an_error_of_ours(data, at, patch, cut):
    at %= len(data)
    damaged = (data[:at] + patch + data[at + len(patch) :])[: max(cut % (2 * len(data)), 1)]
    for look in (check_image, lambda data: decode(data, size=(8, 8), channels=1)):
        with contextlib.suppress(ImageError):
            look(damaged)
