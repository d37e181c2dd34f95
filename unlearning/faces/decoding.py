"""Decoding of image files to pixels, for training and serving alike.

A model must see an image in the same way in training and in serving, so the rules for formats, orientation, colour and
resizing are here only. Files are untrusted: formats are on an allow-list, limits on bytes and pixels are checked before
any pixel is decoded, and every failure of a decoder is one error.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from unlearning.errors import ImageError, ImageTooLargeError

FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
MAX_BYTES = 10_000_000
MAX_PIXELS = 25_000_000
MOST_CHUNKS = 20_000  # of a PNG file; PIL looks at each in Python
MOST_COMPRESSED = 32  # of these, profiles and texts, of which PIL inflates up to 1 MiB each
MAX_WEBP_PIXELS = 8_000_000  # libwebp's canvases and PIL's copies take 16 to 20 bytes a pixel, others 4 to 8

_PNG = b"\x89PNG\r\n\x1a\n"
_COMPRESSED = (b"iCCP", b"iTXt", b"zTXt")
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")  # PIL clips these at 255 instead of scaling them


def decode(data: bytes, *, size: tuple[int, int], channels: int) -> np.ndarray:
    """Pixels of an image, upright, in the wanted size and colours.

    Args:
        data: Content of a PNG, JPEG or WebP file.
        size: Wanted (height, width) in pixels; the image's proportions are not kept.
        channels: 1 for grey (ITU-R 601 luma), 3 for red, green, blue.

    Returns:
        uint8 array of shape (height, width, channels). Resized by an antialiasing triangle filter.

    Raises:
        ImageTooLargeError: more bytes or pixels than MAX_BYTES and MAX_PIXELS.
        ImageError: another format, damaged, truncated, or more than 8 bits a channel.
    """
    return decode_opened(_open(data), size=size, channels=channels)


def decode_opened(image: Image.Image, *, size: tuple[int, int], channels: int) -> np.ndarray:
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
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        upright: Image.Image = image
        if upright.mode == "P" and "transparency" in upright.info:
            upright = upright.convert("RGBA")  # PIL warns when it has to drop such a palette's transparency itself
            image.close()
        if upright.mode != mode:
            upright = upright.convert(mode)
            image.close()  # of a large image there should be two copies at a time, not three
        if upright.size != (width, height):
            upright = upright.resize((width, height), Image.Resampling.BILINEAR)
    except Exception as error:
        raise _damaged(error) from error
    return np.asarray(upright, dtype=np.uint8).reshape(height, width, channels)


def check_chunks(data: bytes) -> None:
    """Refuse a PNG file whose chunks make it far more expensive to open than its size; inflates nothing.

    Raises:
        ImageError: too many chunks, or too many that PIL inflates besides the pixels.
    """
    if not data.startswith(_PNG):
        return
    place, n_chunks, n_compressed = len(_PNG), 0, 0
    while place + 8 <= len(data) and (kind := data[place + 4 : place + 8]) != b"IEND":
        n_chunks += 1
        n_compressed += kind in _COMPRESSED
        if n_chunks > MOST_CHUNKS or n_compressed > MOST_COMPRESSED:
            raise ImageError(
                f"Expected a PNG image of at most {MOST_CHUNKS:,} chunks, {MOST_COMPRESSED} of them profiles and "
                "compressed texts, got more; save it without them."
            )
        place += 12 + int.from_bytes(data[place : place + 4])


def has_compressed_chunks(data: bytes) -> bool:
    """Whether PIL may inflate more of a file than its pixels, up to 32 MiB; may be true for a file without."""
    return data.startswith(_PNG) and any(kind in data for kind in _COMPRESSED)


def check_image(data: bytes) -> None:
    """Check that an image can be decoded completely: checksums first, then every pixel.

    Raises:
        ImageTooLargeError, ImageError: as `decode`.
    """
    try:
        _open(data).verify()
    except ImageError:
        raise
    except Exception as error:
        raise _damaged(error) from error
    image = _open(data)  # PIL leaves a verified image unusable
    try:
        image.draft("L", (1, 1))  # of a JPEG still every byte is read, but only an eighth of the rows is worked out
        image.load()
    except Exception as error:
        raise _damaged(error) from error


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
