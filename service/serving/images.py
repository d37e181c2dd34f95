"""From a request's body to pixels; decoded as for training, by `unlearning.faces.decoding`."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidInputError, TooLargeError, UnsupportedImageError
from unlearning.errors import ImageError, ImageTooLargeError
from unlearning.faces.decoding import FORMATS, Proportions, check_chunks, decode_opened, has_compressed_chunks

_FEW_BYTES = 1 << 16  # of a larger file even the header may have tens of thousands of parts
MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp")


def opened(content: bytes, *, max_bytes: int, max_pixels: int) -> Image.Image:
    """An image whose header was read and checked against format and caps; nothing is decoded yet.

    What the bytes are decides, not what the caller says they are.

    Raises:
        InvalidInputError: empty, the header is damaged, or too much is to be inflated besides the pixels.
        TooLargeError: more bytes or pixels than allowed.
        UnsupportedImageError: not a JPEG, PNG or WebP image.
    """
    if not content:
        raise InvalidInputError("Expected a JPEG, PNG or WebP image, got an empty body.")
    if len(content) > max_bytes:
        raise TooLargeError(f"Expected at most {max_bytes:,} bytes, got {len(content):,}; send a smaller image.")
    try:
        check_chunks(content)
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except ImageError as error:
        raise InvalidInputError(str(error)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLargeError(f"Expected at most {max_pixels:,} pixels; send a smaller image.") from error
    except Exception as error:  # decoders raise almost anything on hostile bytes
        if _begins_like_an_image(content):
            raise InvalidInputError("Expected a whole image, got a damaged or truncated one.") from error
        raise UnsupportedImageError("Expected a JPEG, PNG or WebP image, got other bytes.") from error
    width, height = image.size
    if width * height > max_pixels:
        raise TooLargeError(f"Expected at most {max_pixels:,} pixels, got {width} x {height}; send a smaller image.")
    return image


def opens_fast(content: bytes) -> bool:
    """Whether `opened` is over in about a millisecond; else it is not to be called on the event loop."""
    return len(content) <= _FEW_BYTES and not has_compressed_chunks(content)


def pixels(
    image: Image.Image, *, size: tuple[int, int], channels: int, proportions: Proportions = "stretch"
) -> NDArray[np.uint8]:
    """Image as uint8 `(height, width, channels)`, upright, in the model's size and colours; it is used up.

    Raises:
        TooLargeError: more pixels than any image may have.
        InvalidInputError: truncated, damaged, or more than 8 bits a channel.
    """
    try:
        return decode_opened(image, size=size, channels=channels, proportions=proportions)
    except ImageTooLargeError as error:
        raise TooLargeError(str(error)) from error
    except ImageError as error:
        raise InvalidInputError(str(error)) from error


def _begins_like_an_image(content: bytes) -> bool:
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return is_webp or content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
