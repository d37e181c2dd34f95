"""One input through everything that reads images; what it may cost, and what may come of it."""

from __future__ import annotations

import resource
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass

from service.errors import ExpungeError
from service.serving import images
from unlearning.errors import ImageError
from unlearning.faces.decoding import MAX_BYTES, MAX_PIXELS, check_image, decode

MOST_SECONDS = 1.0  # of processor time, so that a busy machine accuses nobody
MOST_BYTES = 200 << 20  # on top of what the process held before


@dataclass(frozen=True)
class Trial:
    """What an input did; `complaint` is none if it behaved."""

    decoded: bool
    seconds: float
    grown_bytes: int
    complaint: str | None


def held_bytes() -> int:
    """Most memory the process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attempt(content: bytes, *, held: int | None = None) -> Trial:
    """Decode as serving does and check as the data folder does; warnings count as errors, as they do in the tests.

    Args:
        content: the input.
        held: most memory the process held before its first input; none: before this one. A process's most only grows,
            so an input after a hungry one would pass for modest.
    """
    before, began, decoded, complaint = held_bytes() if held is None else held, time.process_time(), False, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with suppress(ExpungeError):
                image = images.opened(content, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
                images.pixels(image, size=(32, 32), channels=3)
                decoded = True
            with suppress(ImageError):
                decode(content, size=(16, 16), channels=1)
            with suppress(ImageError):
                check_image(content)
    except BaseException as error:
        complaint = f"raised {type(error).__name__}: {error}"
    seconds, grown = time.process_time() - began, held_bytes() - before
    if complaint is None and seconds > 3 * MOST_SECONDS:  # three readings
        complaint = f"took {seconds:.1f} s of processor time for three readings"
    if complaint is None and grown > MOST_BYTES:
        complaint = f"took {grown >> 20} MB"
    return Trial(decoded, seconds, grown, complaint)
