from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import InvalidInputError, TooLargeError, UnsupportedImageError
from service.inference.engine import Engine
from service.models.manifest import Manifest
from service.models.registry import CheckedWeights
from service.serving import images
from service.settings import Settings
from service.training.data import pack_images
from service.training.spec import open_images
from tests.service.versions import image, pixels_of
from unlearning.errors import FacesError, ImageError
from unlearning.faces import check_folder, decoding, pack
from unlearning.faces.dataset import read_rows
from unlearning.faces.decoding import MOST_COMPRESSED, decode
from unlearning.faces.sources import table
from unlearning.models import build, save_weights
from unlearning.recipes import Recipe

CAPS = {"max_bytes": 10_000_000, "max_pixels": 25_000_000}


def pixels(content: bytes, **wanted: object) -> np.ndarray:
    return images.pixels(images.opened(content, **CAPS), **wanted)


def decoded(content: bytes) -> np.ndarray:
    return pixels(content, size=(16, 16), channels=3)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_accepted_formats_give_pixels_of_the_models_shape(kind):
    content = image(1, size=(40, 30), kind=kind)
    assert images.opened(content, **CAPS).size == (30, 40)
    found = pixels(content, size=(16, 12), channels=3)
    assert found.shape == (16, 12, 3)
    assert found.dtype == np.uint8


def test_a_lossless_image_of_the_right_size_is_unchanged():
    assert np.array_equal(pixels(image(3), size=(16, 16), channels=3), pixels_of(3))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_ordinary_mode_is_converted(mode, channels):
    content = saved(Image.fromarray(pixels_of(2)).convert(mode), "PNG")
    assert pixels(content, size=(16, 16), channels=channels).shape == (16, 16, channels)


def test_cmyk_is_converted():
    content = saved(Image.fromarray(pixels_of(2)).convert("CMYK"), "JPEG")
    assert pixels(content, size=(16, 16), channels=3).shape == (16, 16, 3)


def test_sixteen_bits_are_refused_with_a_remedy():
    deep = saved(Image.fromarray(np.full((16, 16), 40_000, np.uint16)), "PNG")
    with pytest.raises(InvalidInputError, match="8 bits"):
        pixels(deep, size=(16, 16), channels=1)


def test_orientation_is_undone():
    upright = Image.fromarray(np.vstack([np.full((8, 16, 3), 255, np.uint8), np.zeros((8, 16, 3), np.uint8)]))
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    content = saved(upright.rotate(180), "JPEG", exif=exif, quality=95)
    found = pixels(content, size=(16, 16), channels=3)
    assert found[:4].mean() > 240
    assert found[-4:].mean() < 15


def with_orientation(image: Image.Image, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image, kind, exif=exif)


RGB = Image.fromarray(np.random.default_rng(8).integers(0, 256, (20, 14, 3), dtype=np.uint8))
RGBA = Image.fromarray(np.random.default_rng(8).integers(0, 256, (20, 14, 4), dtype=np.uint8))
MALFORMED_EXIF = b"II*\0" + struct.pack("<IH", 8, 2) + b"".join(
    [struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0), struct.pack("<HHI4s", 0x011A, 2, 1, b"abc\0"), bytes(4)]
)  # fmt: skip
TAKEN = {
    "grey JPEG": saved(RGB.convert("L"), "JPEG"),
    "progressive JPEG": saved(RGB, "JPEG", progressive=True),
    "CMYK JPEG": saved(RGB.convert("CMYK"), "JPEG"),
    "JPEG with a second image": saved(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)]),
    "JPEG with a profile": saved(RGB, "JPEG", icc_profile=b"no profile"),
    "palette": saved(RGB.convert("P"), "PNG"),
    "palette with transparency": saved(RGB.convert("P"), "PNG", transparency=bytes(range(256))),
    "one bit": saved(RGB.convert("1"), "PNG"),
    "RGBA": saved(RGBA, "PNG"),
    "LA": saved(RGBA.convert("LA"), "PNG"),
    "RGBA WebP": saved(RGBA, "WEBP", lossless=True),
    "animated PNG": saved(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)]),
    "animated WebP": saved(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)]),
    "one pixel": saved(RGB.crop((0, 0, 1, 1)), "PNG"),
    "a line": saved(RGB.resize((3000, 1)), "PNG"),
    **{f"orientation, {kind}": with_orientation(RGB, kind) for kind in decoding.FORMATS},
    **{f"malformed EXIF, {kind}": saved(RGB, kind, exif=b"Exif\0\0" + MALFORMED_EXIF) for kind in decoding.FORMATS},
    **{f"no EXIF, {kind}": saved(RGB, kind, exif=b"Exif\0\0junkjunk") for kind in decoding.FORMATS},
}
REFUSED = {
    "empty": b"",
    "text": b"hello",
    "GIF": saved(RGB, "GIF"),
    "animated GIF": saved(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]),
    "TIFF": saved(RGB, "TIFF"),
    "16-bit grey": saved(Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG"),
    "truncated": saved(RGB, "PNG")[:-30],
    "truncated JPEG": saved(RGB, "JPEG")[:-100],
    "a wrong checksum": saved(RGB, "PNG")[:-1] + b"\0",
    "too many pixels": saved(Image.new("1", (5_001, 5_000)), "PNG"),
}


def imported(content: bytes, folder: Path) -> Path:
    """The data folder that an import makes of a file."""
    source = folder / "source"
    source.mkdir()
    (source / "one.png").write_bytes(content)
    (source / "two.png").write_bytes(image(1))
    (source / "metadata.csv").write_text("file_name,user_id,label\none.png,ann,a\ntwo.png,ann,b\n")
    table.write_folder(source, folder / "data")
    return folder / "data"


def by_hand(content: bytes, folder: Path) -> Path:
    """A data folder with a file that nothing looked at."""
    made = imported(image(2), folder)
    place = next(row for row in read_rows(made) if row.label == "a").file_name
    (made / place).write_bytes(content)
    return made


@pytest.mark.parametrize("proportions", ["stretch", "crop", "pad"])
def test_training_and_serving_treat_proportions_alike(tmp_path, proportions):
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((60, 20)).convert("RGB").save(stream, "JPEG")
    folder = imported(stream.getvalue(), tmp_path)
    recipe = Recipe("r", "small_resnet", image_size=(12, 16), channels=3, proportions=proportions)
    home = Settings(home=tmp_path / "home")
    home.home.mkdir()
    folder.rename(home.data_folder)
    faces = open_images(pack_images(home, recipe))
    (place,) = np.flatnonzero(faces.labels == faces.classes.index("a"))
    manifest = Manifest(
        architecture="small_resnet", width=2, channels=3, image_size=(12, 16), classes=("a", "b"), recipe="r",
        recipe_digest=recipe.digest, data_manifest_digest="d", seed=0, proportions=recipe.proportions,
    )  # fmt: skip
    save_weights(build("small_resnet", 2, channels=3, width=2), tmp_path / "w")
    engine = Engine.load(CheckedWeights("d", Manifest.from_dict(manifest.to_dict()), (tmp_path / "w").read_bytes()), 1)
    served = images.pixels(
        images.opened(stream.getvalue(), max_bytes=10**6, max_pixels=10**6),
        size=engine.image_size, channels=engine.channels, proportions=engine.proportions,
    )  # fmt: skip
    np.testing.assert_array_equal(faces.images[place], served)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("content", TAKEN.values(), ids=TAKEN)
def test_import_check_training_and_serving_take_the_same_images(tmp_path, content, channels):
    folder = imported(content, tmp_path)
    rows = check_folder(folder)
    faces = pack(folder, size=(12, 16), channels=channels)
    (place,) = [index for index, row in enumerate(rows) if row.label == "a"]
    np.testing.assert_array_equal(faces.images[place], pixels(content, size=(12, 16), channels=channels))


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_import_check_training_and_serving_refuse_the_same_files(tmp_path, content):
    with pytest.raises(FacesError, match="line 2"):
        imported(content, tmp_path)
    (tmp_path / "by_hand").mkdir()
    folder = by_hand(content, tmp_path / "by_hand")
    for look in (check_folder, lambda folder: pack(folder, size=(12, 16), channels=3)):
        with pytest.raises(FacesError, match="line"):
            look(folder)
    with pytest.raises((InvalidInputError, TooLargeError, UnsupportedImageError)):
        pixels(content, size=(12, 16), channels=3)


def test_an_empty_body_is_named():
    with pytest.raises(InvalidInputError, match="empty"):
        images.opened(b"", **CAPS)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_unsupported(kind):
    with pytest.raises(UnsupportedImageError, match="JPEG, PNG or WebP"):
        images.opened(saved(Image.new("RGB", (16, 16)), kind), **CAPS)


@pytest.mark.parametrize("content", [b"hello", b"\x00" * 100, b"%PDF-1.7", b"<svg/>", b"RIFF\x04\x00\x00\x00WAVE"])
def test_bytes_that_are_no_image_are_unsupported(content):
    with pytest.raises(UnsupportedImageError):
        images.opened(content, **CAPS)


def test_too_many_bytes():
    with pytest.raises(TooLargeError, match="at most 100 bytes"):
        images.opened(image(1), max_bytes=100, max_pixels=1000)


def test_too_many_pixels():
    with pytest.raises(TooLargeError, match="at most 255 pixels, got 16 x 16"):
        images.opened(image(1), max_bytes=100_000, max_pixels=255)


@pytest.mark.parametrize("side", [6_000, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    data = zlib.compress(b"")
    body = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    with pytest.raises(TooLargeError):
        images.opened(b"\x89PNG\r\n\x1a\n" + chunk + body + end, **CAPS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_named(kind):
    content = image(1, size=(64, 64), kind=kind)
    for n_bytes in (len(content) // 2, 12):
        with pytest.raises(InvalidInputError, match="damaged or truncated") as caught:
            decoded(content[:n_bytes])
        assert caught.value.status == 422


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_damage_anywhere_is_decoded_or_refused_but_never_crashes(kind, place, damage):
    content = bytearray(image(1, size=(24, 24), kind=kind))
    place %= len(content)
    content[place : place + len(damage)] = damage
    with suppress(InvalidInputError):
        assert decoded(bytes(content)).shape == (16, 16, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_of_packed_pixels_is_decoded_to_them(channels):
    image = np.random.default_rng(0).integers(0, 256, (12, 10, channels)).astype(np.uint8)
    np.testing.assert_array_equal(pixels(decoding.to_png(image), size=(12, 10), channels=channels), image)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(*chunks: bytes, last: bool = False) -> bytes:
    """A PNG with further chunks behind its header, or before its end."""
    content = image(1)
    place = len(content) - 12 if last else 33
    return content[:place] + b"".join(chunks) + content[place:]


MEGABYTE = zlib.compress(bytes(1_000_000), 9)
BOMBS = {
    "profiles": chunk(b"iCCP", b"p\0\0" + MEGABYTE),
    "compressed text": chunk(b"zTXt", b"t\0\0" + MEGABYTE),
    "international text": chunk(b"iTXt", b"t\0\1\0\0\0" + MEGABYTE),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("last", [False, True])
def test_what_a_png_inflates_besides_pixels_is_bounded(bomb, last):
    few, many = with_chunks(*[bomb] * MOST_COMPRESSED, last=last), with_chunks(*[bomb] * 60, last=last)
    assert len(many) < 70_000
    assert np.array_equal(pixels(few, size=(16, 16), channels=3), pixels_of(1))
    with pytest.raises(InvalidInputError, match="profiles and compressed texts"):
        images.opened(many, **CAPS)
    with pytest.raises(ImageError):
        decode(many, size=(16, 16), channels=3)


def test_so_is_the_number_of_its_chunks():
    with pytest.raises(InvalidInputError, match="chunks"):
        images.opened(with_chunks(chunk(b"tEXt", b"") * 20_001), **CAPS)


def test_what_takes_long_to_open_is_known_beforehand():
    assert images.opens_fast(image(1))
    assert images.opens_fast(image(1, kind="JPEG"))
    for bomb in BOMBS.values():
        assert not images.opens_fast(with_chunks(bomb, last=True))
    assert not images.opens_fast(with_chunks(chunk(b"tEXt", bytes(100_000))))


def test_the_walk_over_chunks_ends_on_any_bytes():
    whole = with_chunks(*BOMBS.values())
    for end in range(len(whole)):
        with suppress(InvalidInputError, UnsupportedImageError):
            images.opened(whole[:end], **CAPS)
