"""Decoding of image files to pixels, for training and serving alike.

A model must see an image in the same way in training and in serving, so the rules for formats, orientation, colour,
transparency and resizing are here only; `docs/image-rules.md` states them. A rule whose change can change pixels needs
another `RULES`. Files are untrusted: formats are on an allow-list, limits on bytes and pixels are checked before any
pixel is decoded, and every failure of a decoder is one error.
"""

from __future__ import annotations

import io
import warnings
from functools import partial
from typing import Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from unlearning.errors import ImageError, ImageTooLargeError

warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # of EXIF that it cannot read; the pixels are whole

Proportions = Literal["stretch", "crop", "pad"]

RULES = 3  # version of the rules, part of a pack's key
FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
MAX_BYTES = 10_000_000
MAX_PIXELS = 25_000_000
MOST_CHUNKS = 20_000  # of a PNG file; PIL looks at each in Python
MOST_COMPRESSED = 32  # of these, profiles and texts, of which PIL inflates up to 1 MiB each
MAX_WEBP_PIXELS = 8_000_000  # libwebp's canvases and PIL's copies take 16 to 20 bytes a pixel, others 4 to 8

_PNG = b"\x89PNG\r\n\x1a\n"
_COMPRESSED = (b"iCCP", b"iTXt", b"zTXt")
_ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # what PIL multiplies greys of 2 and 4 bits by
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")  # PIL clips these at 255 instead of scaling them


def decode(data: bytes, *, size: tuple[int, int], channels: int, proportions: Proportions = "stretch") -> np.ndarray:
    """Pixels of an image, upright, in the wanted size and colours.

    Args:
        data: Content of a PNG, JPEG or WebP file.
        size: Wanted (height, width) in pixels.
        proportions: What happens to an image of other proportions: it is stretched; or its middle is cut out; or it is
            made to fit and the rest is white.
        channels: 1 for grey (ITU-R 601 luma), 3 for red, green, blue; over white where the image is transparent.

    Returns:
        uint8 array of shape (height, width, channels). Resized by an antialiasing triangle filter.

    Raises:
        ImageTooLargeError: more bytes or pixels than MAX_BYTES and MAX_PIXELS.
        ImageError: another format, damaged, truncated, or more than 8 bits a channel.
    """
    return decode_opened(_open(data), size=size, channels=channels, proportions=proportions)


def decode_opened(
    image: Image.Image, *, size: tuple[int, int], channels: int, proportions: Proportions = "stretch"
) -> np.ndarray:
    """As `decode`, for an image whose header has been read; the image is closed afterwards.

    Raises:
        ImageTooLargeError, ImageError: as `decode`.
    """
    height, width = size
    mode = "L" if channels == 1 else "RGB"
    _check_header(image)
    try:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the work; what is left is still at
        # least twice as large as wanted, so the filter below decides how the result looks.
        image.draft(mode, (2 * max(size), 2 * max(size)))
        _scale_transparent_colour(image)
        image.load()
        resize = partial(_resized, size=(width, height), proportions=proportions)
        for step in (_upright, _with_alpha, partial(_over_white, mode=mode), resize):
            after = step(image)
            if after is not image:
                image.close()  # of a large image there should be two copies at a time, not three
                image = after
    except Exception as error:
        raise _damaged(error) from error
    return np.asarray(image, dtype=np.uint8).reshape(height, width, channels)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its metadata say, or as it is where they cannot be read."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever the metadata are, the pixels are whole
        turn = None
    return image if turn is None else image.transpose(turn)


def _with_alpha(image: Image.Image) -> Image.Image:
    """The image with an alpha channel, if any of it may be transparent."""
    if image.has_transparency_data and image.mode not in ("LA", "RGBA"):
        return image.convert("RGBA")
    return image


def _over_white(image: Image.Image, mode: str) -> Image.Image:
    """The image in the wanted colours, over white where it is transparent.

    The colours below full transparency are whatever a program left there and nobody sees them, so they must not decide
    an answer. Over white, because most viewers and web pages show it so.
    """
    if image.mode in ("LA", "RGBA"):
        flat = Image.new(mode, image.size, "white")
        flat.paste(image, mask=image)
        return flat
    return image if image.mode == mode else image.convert(mode)


def _resized(image: Image.Image, size: tuple[int, int], proportions: Proportions) -> Image.Image:
    if image.size == size:
        return image
    if proportions == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if proportions == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR, color="white")
    return image.resize(size, Image.Resampling.BILINEAR)


def _scale_transparent_colour(image: Image.Image) -> None:
    """Scale a PNG's transparent colour to 8 bits as PIL scales pixels, which it forgets; before pixels are decoded."""
    key = image.info.get("transparency")
    raw = image.tile[0].args if isinstance(image, PngImageFile) and image.tile else None
    if isinstance(key, int) and raw in _GREY_STEPS:
        image.info["transparency"] = min(key * _GREY_STEPS[raw], 255)
    elif isinstance(key, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def check_chunks(data: bytes) -> None:
    """Check the chunks of a PNG file and their checksums, of which PIL skips some; inflates nothing.

    Raises:
        ImageError: damaged or truncated; or so many chunks, or chunks that PIL inflates besides the pixels, that the
            file is far more expensive to open than its size.
    """
    if not data.startswith(_PNG):
        return
    content, place, n_chunks, n_compressed = memoryview(data), len(_PNG), 0, 0
    while (kind := data[place + 4 : place + 8]) != b"IEND":
        n_chunks += 1
        n_compressed += kind in _COMPRESSED
        if n_chunks > MOST_CHUNKS or n_compressed > MOST_COMPRESSED:
            raise ImageError(
                f"Expected a PNG image of at most {MOST_CHUNKS:,} chunks, {MOST_COMPRESSED} of them profiles and "
                "compressed texts, got more; save it without them."
            )
        place = _after_chunk(content, place)
    _after_chunk(content, place)


def _after_chunk(content: memoryview, place: int) -> int:
    """Where a PNG's chunk ends that begins at `place`, after checking its checksum."""
    end = place + 8 + int.from_bytes(content[place : place + 4])
    if len(content) < end + 4 or crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4]):
        raise ImageError("Expected a whole image, got a damaged or truncated one (PNG checksum).")
    return end + 4


def has_compressed_chunks(data: bytes) -> bool:
    """Whether PIL may inflate more of a file than its pixels, up to 32 MiB; may be true for a file without."""
    return data.startswith(_PNG) and any(kind in data for kind in _COMPRESSED)


def check_image(data: bytes) -> None:
    """Check that `decode` can decode an image, whatever the wanted size and colours.

    Raises:
        ImageTooLargeError, ImageError: as `decode`.
    """
    decode(data, size=(1, 1), channels=1)  # of a JPEG still every byte is read, but few of its rows are worked out


def _open(data: bytes) -> Image.Image:
    """Read the image's header and check its format and limits; decodes no pixel."""
    if len(data) > MAX_BYTES:
        raise ImageTooLargeError(f"Expected at most {MAX_BYTES:,} bytes, got {len(data):,}; send a smaller image.")
    check_chunks(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # PIL's own caps are higher: between them it warns and the cap below refuses; warnings may be errors.
        raise ImageTooLargeError(f"Expected at most {MAX_PIXELS:,} pixels; send a smaller image.") from error
    except Exception as error:  # decoders raise almost anything on hostile bytes; all of it means "not an image"
        raise ImageError("Expected a JPEG, PNG or WebP image, got bytes that are none of these.") from error
    _check_header(image)
    return image


def _check_header(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageTooLargeError(
            f"Expected at most {MAX_PIXELS:,} pixels, got {image.width} x {image.height}; send a smaller image."
        )
    if image.format == "WEBP" and image.width * image.height > MAX_WEBP_PIXELS:
        raise ImageTooLargeError(
            f"Expected at most {MAX_WEBP_PIXELS:,} pixels of a WebP image, got {image.width} x {image.height}; "
            "send a smaller one, or a JPEG or PNG."
        )
    if image.mode in _DEEP_MODES:
        raise ImageError(f"Expected 8 bits a channel, got an image of mode {image.mode}; save it with 8 bits.")


def _damaged(error: Exception) -> ImageError:
    """The error for every failure after the header."""
    return ImageError(f"Expected a whole image, got a damaged or truncated one ({type(error).__name__}).")


def to_png(image: NDArray[np.uint8]) -> bytes:
    """A packed image, uint8 `(height, width, channels)`, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()
