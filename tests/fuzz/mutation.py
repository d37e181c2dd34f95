"""Images of every kind the decoder takes, and ways to damage them. Everything follows from a seed."""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Callable

from PIL import Image, PngImagePlugin


def corpus() -> list[bytes]:
    """Whole images: each format, mode, and feature that has code of its own in a decoder; small, and a few large."""
    noise = random.Random(0)
    image = Image.frombytes("RGB", (40, 48), noise.randbytes(40 * 48 * 3)).resize((41, 49))
    turned = Image.Exif()
    turned[274] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2000, zip=True)
    text.add_itxt("note", "y" * 500, zip=True)
    jpeg: list[dict[str, object]] = [
        {}, {"progressive": True}, {"subsampling": 0}, {"quality": 5}, {"exif": turned}, {"restart_marker_blocks": 2},
    ]  # fmt: skip
    files = [_saved(image, "JPEG", **options) for options in jpeg]
    files += [_saved(image.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    files += [_saved(image.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
    files += [_saved(image, "PNG", pnginfo=text), _saved(image, "PNG", exif=turned)]
    files += [_saved(image.convert("P"), "PNG", transparency=bytes(range(200))), _saved(image, "PNG", dpi=(72, 72))]
    files += [_saved(image, "WEBP", lossless=lossless) for lossless in (True, False)]
    files += [_saved(image.convert("RGBA"), "WEBP", exif=turned)]
    files += [_saved(image, form, save_all=True, append_images=[image.rotate(90)] * 3) for form in ("WEBP", "PNG")]
    return files


def large_corpus() -> list[bytes]:
    """Images of few bytes and as many pixels as are allowed, or more."""
    turned = Image.Exif()
    turned[274] = 6
    files = []
    for width, height in ((5000, 5000), (16_383, 1500), (1, 65_000), (16_000, 16_000)):
        for mode, form in (("RGB", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGB", "WEBP")):
            if form != "PNG" and max(width, height) > 16_383:
                continue
            if width * height > 25_000_000 and form != "PNG":
                continue  # would take gigabytes to make; the PNG's header is rewritten instead
            if width * height > 25_000_000:
                small = _saved(Image.new(mode, (8, 8)), form)
                header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + small[24:29]
                files.append(small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:])
                continue
            files.append(_saved(Image.new(mode, (width, height)), form, exif=turned))
    return files


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def mutated(rng: random.Random, files: list[bytes]) -> bytes:
    """A file of the corpus after one to six kinds of damage; of PNG half the time with check sums made good."""
    content = bytearray(rng.choice(files))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        content = rng.choice(_DAMAGES)(rng, content, files)
    if content[:4] == b"\x89PNG" and rng.random() < 0.5:
        content = _with_good_sums(content)
    return bytes(content)


def _flip(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    for _ in range(rng.choice((1, 4, 32))):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _number(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    """A length, a width or an offset becomes extreme."""
    value = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, rng.getrandbits(32)))
    width = rng.choice((1, 2, 4))
    at = rng.randrange(max(1, min(len(content), rng.choice((40, 200, len(content) or 1)))))
    raw = (value & ((1 << 8 * width) - 1)).to_bytes(width, rng.choice(("big", "little")))
    content[at : at + width] = raw
    return content


def _cut(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    return content[: rng.randrange(len(content) + 1)]


def _remove(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    at = rng.randrange(len(content) + 1)
    del content[at : at + rng.choice((1, 4, 16, 100))]
    return content


def _repeat(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    at = rng.randrange(len(content) + 1)
    content[at:at] = bytes(content[at : at + rng.choice((1, 8, 64, 400))]) * rng.choice((1, 2, 20))
    return content


def _insert(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    at = rng.randrange(len(content) + 1)
    content[at:at] = rng.randbytes(rng.choice((1, 3, 30)))
    return content


def _splice(rng: random.Random, content: bytearray, files: list[bytes]) -> bytearray:
    other = rng.choice(files)
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other)) :]


_DAMAGES: tuple[Callable[[random.Random, bytearray, list[bytes]], bytearray], ...] = (
    _flip, _flip, _number, _number, _cut, _remove, _repeat, _insert, _splice,
)  # fmt: skip


def _with_good_sums(content: bytearray) -> bytearray:
    """Each chunk's CRC as its bytes are now, so that the damage gets beyond the check."""
    at = 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return content
