"""From bytes to pixels: shapes, colours, orientation, caps, and hostile bytes."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.unlearning.faces.folders import image_file
from tests.waiting import PATIENCE_SECONDS
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


def test_a_cmyk_jpeg_is_inverted_with_and_without_adobe_s_mark():
    image = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")
    marked = encoded(image, "JPEG", quality=95)  # inverted, as Photoshop writes it
    place = marked.index(b"\xff\xee\x00\x0eAdobe")
    unmarked = marked[:place] + marked[place + 16 :]
    assert b"Adobe" not in unmarked
    for data in (marked, unmarked):
        pixels = decode(data, size=(1, 1), channels=3)[0, 0]
        assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_animated_image_is_its_first(kind, mode):
    first, second = (Image.new(mode, (8, 8), colour) for colour in ("red", "blue"))
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **lossless)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    check_image(data)
    assert decode(data, size=(1, 1), channels=3).tolist() == [[[255, 0, 0]]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_colour_profile_is_ignored(kind):
    image = Image.fromarray(np.random.default_rng(4).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    expected = decode(encoded(image, kind), size=(9, 7), channels=3)
    for embedded in (profile, b"no profile"):
        data = encoded(image, kind, icc_profile=embedded)
        np.testing.assert_array_equal(decode(data, size=(9, 7), channels=3), expected)


def test_sixteen_bits_of_colour_become_the_upper_eight():
    data = png_of([0x12FF, 0x3400, 0x5680], depth=16, colour=2, width=1)
    assert decode(data, size=(1, 1), channels=3).tolist() == [[[0x12, 0x34, 0x56]]]


def test_proportions_are_not_kept_and_nothing_is_cut_off():
    image = Image.new("L", (40, 10), 0)
    image.paste(255, (20, 0, 40, 10))  # right half white
    pixels = decode(encoded(image), size=(16, 16), channels=1)
    assert pixels[:, :6].max() == 0
    assert pixels[:, -6:].min() == 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(40, 10), (10, 40)], ids=["wide", "high"])
def test_proportions_are_kept_where_the_recipe_says_so(shape, channels):
    """Of an image four times as long as high the middle quarter is grey, what lies outside of it black."""
    width, height = shape
    image = Image.new("L", shape, 0)
    middle = (15, 0, 25, 10) if width > height else (0, 15, 10, 25)
    image.paste(128, middle)
    cropped = decode(encoded(image), size=(20, 20), channels=channels, proportions="crop")
    assert set(cropped[2:-2, 2:-2].ravel().tolist()) == {128}
    padded = decode(encoded(image), size=(20, 20), channels=channels, proportions="pad")
    if height > width:
        padded = padded.swapaxes(0, 1)
    assert padded.shape == (20, 20, channels)
    assert padded[:7].min() == padded[13:].min() == 255
    assert padded[8:12, :6].max() == padded[8:12, 14:].max() == 0
    assert padded[8:12, 9:11].mean() == 128


def test_an_image_of_the_wanted_proportions_is_the_same_however_they_are_treated():
    image = encoded(Image.linear_gradient("L"))
    made = [decode(image, size=(32, 32), channels=1, proportions=each) for each in ("stretch", "crop", "pad")]
    assert (made[0] == made[1]).all()
    assert (made[0] == made[2]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_one_pixel_is_an_image(kind):
    data = encoded(Image.new("L", (1, 1), 200), kind)
    check_image(data)
    assert np.abs(decode(data, size=(12, 10), channels=1).astype(int) - 200).max() <= 3


def test_a_colour_that_the_palette_lacks_is_black():
    rows = zlib.compress(bytes([0, 0, 1]))
    header = struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0)
    parts = [(b"IHDR", header), (b"PLTE", bytes([9, 9, 9])), (b"IDAT", rows), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    assert decode(data, size=(1, 2), channels=1).tolist() == [[[9], [0]]]


def test_a_palette_with_transparency():
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30] * 256)
    data = encoded(image, transparency=bytes([255] * 256))
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


def tiff(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF data of one directory, without "Exif": tag, type and four bytes of each entry, which count one."""
    body = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


SHORT, RATIONAL = 3, 5
SIX = (0x0112, SHORT, struct.pack("<HH", 6, 0))
MALFORMED = {
    "a resolution that is a text": (tiff(SIX, (0x011A, 2, b"abc\0")), True),
    "an orientation that is a text": (tiff((0x0112, 2, b"6\0\0\0")), False),
    "an orientation that does not exist": (tiff((0x0112, SHORT, struct.pack("<HH", 9, 0))), False),
    "a fraction that is not there": (tiff((0x0112, RATIONAL, bytes(4))), False),
    "a directory cut short": (tiff(SIX)[:-8], False),
    "another header": (b"junkjunkjunk", False),
    "half a header": (b"II*\0", False),
}


def with_exif(kind: str, exif: bytes) -> bytes:
    image = Image.new("L", (20, 10), 0)
    image.paste(255, (0, 0, 10, 10))  # left half white
    return encoded(image, kind, exif=b"Exif\0\0" + exif if kind == "JPEG" else exif)


@pytest.mark.filterwarnings("ignore")  # PIL warns of odd metadata; here only pixels matter
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("exif", "turned"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_exif_costs_the_orientation_at_most(kind, exif, turned):
    data = with_exif(kind, exif)
    check_image(data)
    pixels = decode(data, size=(10, 20), channels=1)
    white, black = (pixels[:4], pixels[-4:]) if turned else (pixels[:, :8], pixels[:, -8:])
    assert white.mean() > 245
    assert black.mean() < 10


def test_malformed_exif_prints_nothing(tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(with_exif("JPEG", MALFORMED["a directory cut short"][0]))
    program = "import sys; from unlearning.faces import decoding; decoding.check_image(open(sys.argv[1], 'rb').read())"
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=False,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_in_every_format(kind, orientation):
    stored = np.zeros((16, 24), np.uint8)
    stored[:8, :12] = 255  # the first quarter of the stored rows and columns
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(stored), kind, exif=exif)
    # EXIF 2.32, 4.6.4: where the first stored row and column are when the image is shown
    shown = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T,
             6: stored.T[:, ::-1], 7: stored.T[::-1, ::-1], 8: stored.T[::-1]}[orientation]  # fmt: skip
    pixels = decode(data, size=shown.shape, channels=1)[..., 0]
    assert np.abs(pixels.astype(int) - shown).max() < 12


@pytest.mark.parametrize(("exif_too", "turned"), [(False, True), (True, False)])
def test_xmp_gives_the_orientation_where_exif_does_not(exif_too, turned):
    image = Image.new("L", (20, 10), 0)
    image.paste(255, (0, 0, 10, 10))
    exif = Image.Exif()
    if exif_too:
        exif[0x0112] = 1
    data = encoded(image, "JPEG", exif=exif, xmp=b'<rdf:Description tiff:Orientation="6"/>')
    pixels = decode(data, size=(10, 20), channels=1)
    assert (pixels[:4] if turned else pixels[:, :8]).mean() > 245


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(samples: list[int], *others: bytes, depth: int, colour: int, width: int) -> bytes:
    """A PNG of one row of samples; `colour` as in its header: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    if depth == 16:
        row = struct.pack(f">{len(samples)}H", *samples)
    else:
        bits = "".join(f"{sample:0{depth}b}" for sample in samples)
        row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    packed = zlib.compress(b"\0" + row)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *others, chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    )


def palette_of(alpha: bytes | int) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([40, 0, 0, 40, 40, 40])
    image.putpixel((1, 0), 1)
    return encoded(image, transparency=alpha)


def webp_of(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> bytes:
    image = Image.new("RGBA", (2, 1), first)
    image.putpixel((1, 0), second)
    return encoded(image, "WEBP", lossless=True, exact=True)


KEY = struct.pack(">3H", 0x0A00, 0, 0x0080)
TRANSPARENT = {  # two pixels each: the first transparent, the second 40 everywhere
    "RGBA": png_of([9, 8, 7, 0, 40, 40, 40, 255], depth=8, colour=6, width=2),
    "RGBA, 16 bits": png_of([0x0901, 8, 7, 0, 0x2811, 0x2811, 0x2811, 0xFFFF], depth=16, colour=6, width=2),
    "LA": png_of([9, 0, 40, 255], depth=8, colour=4, width=2),
    "LA, 16 bits": png_of([0x0901, 0, 0x2811, 0xFFFF], depth=16, colour=4, width=2),
    "palette with alphas": palette_of(bytes([0, 255])),
    "palette with a transparent entry": palette_of(0),
    "a transparent grey": png_of([9, 40], chunk(b"tRNS", struct.pack(">H", 9)), depth=8, colour=0, width=2),
    "a transparent colour": png_of(
        [9, 8, 7, 40, 40, 40], chunk(b"tRNS", struct.pack(">3H", 9, 8, 7)), depth=8, colour=2, width=2
    ),
    "a transparent colour of 16 bits": png_of(
        [0x0A00, 0, 0x0080, 0x2811, 0x2811, 0x2811], chunk(b"tRNS", KEY), depth=16, colour=2, width=2
    ),
    "WebP": webp_of((9, 8, 7, 0), (40, 40, 40, 255)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("data", TRANSPARENT.values(), ids=TRANSPARENT)
def test_what_is_transparent_is_white(data, channels):
    check_image(data)
    assert decode(data, size=(1, 2), channels=channels).tolist() == [[[255] * channels, [40] * channels]]


@pytest.mark.parametrize(("depth", "key"), [(1, 0), (2, 1), (4, 1)])
def test_a_transparent_grey_of_fewer_bits(depth, key):
    data = png_of([key, 0, 2**depth - 1], chunk(b"tRNS", struct.pack(">H", key)), depth=depth, colour=0, width=3)
    assert decode(data, size=(1, 3), channels=1)[0, :, 0].tolist() == [255, 255 if key == 0 else 0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_half_transparent_is_half_white(channels):
    data = png_of([0, 0, 0, 127], depth=8, colour=6, width=1)
    assert decode(data, size=(1, 1), channels=channels).tolist() == [[[128] * channels]]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_alpha_channel_that_hides_nothing_changes_nothing(channels):
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    opaque = image.copy()
    opaque.putalpha(255)
    np.testing.assert_array_equal(*(decode(encoded(each), size=(9, 7), channels=channels) for each in (image, opaque)))


def test_transparent_pixels_do_not_bleed_when_the_image_is_made_smaller():
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 32, 64))
    assert decode(encoded(image), size=(4, 4), channels=3).min() == 255


LOOKS = [check_image, lambda data: decode(data, size=(8, 8), channels=3)]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", [b"IHDR", b"IDAT", b"IEND", b"tEXt"])
def test_a_png_with_a_wrong_checksum_is_damaged(look, name):
    data = png_of([40, 40], chunk(b"tEXt", b"a\0b"), depth=8, colour=0, width=2)
    look(data)
    place = data.index(name)
    end = place + 4 + int.from_bytes(data[place - 4 : place])
    with pytest.raises(ImageError, match="damaged"):
        look(data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :])


@pytest.mark.parametrize("look", LOOKS)
def test_a_png_without_its_end_is_damaged(look):
    with pytest.raises(ImageError, match="damaged or truncated"):
        look(png_of([40, 40], depth=8, colour=0, width=2)[:-12])


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
