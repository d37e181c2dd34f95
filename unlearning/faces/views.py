"""A fixed set of views of an image: what another image of the same subject might look like.

A model that forgot an image may still know it mirrored or turned a little, so a test of forgetting looks at all of
them. The views are deterministic and computed at the size the model sees: as it is, mirrored, shifted by a twentieth
of the shorter side each way, turned by 6° each way, lighter, and darker. Where a view needs pixels from outside the
image the border is repeated. Light changes multiply, as exposure does; adding a constant would be invisible to a
network that subtracts the local mean.

A view under which a model answers alike whether it knows the subject or not only adds noise. A blur over 3×3 pixels was
such a view: `att_small` looks at differences within 3×3 pixels, and its margins of tuning subjects were −4.7 with and
without them. So there is none.

Margins are kept by what they were computed from: whoever keeps margins of views keeps `VERSION` in the key.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from unlearning.errors import FacesError

VERSION = 1
"""Changes with every change of a view's pixels, of the views or of their order."""

DEGREES = 6.0
_SHIFT_SHARE = 20  # of the shorter side: one twentieth, at least one pixel
_LIGHTER, _DARKER = 6, 4  # fifths of the grey level
_CHUNK = 256  # images turned at a time


def views(images: np.ndarray) -> np.ndarray:
    """All views of images, in the order of `VIEWS`.

    Args:
        images: uint8 `(n, height, width, channels)`.

    Returns:
        uint8 `(n_views, n, height, width, channels)`; the first view is the images as they are.

    Raises:
        FacesError: not uint8 or not of this shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise FacesError(f"Expected images as uint8 (n, height, width, channels), got {images.dtype} {images.shape}.")
    return np.stack([view(images) for view in VIEWS.values()])


def _as_it_is(images: np.ndarray) -> np.ndarray:
    return images


def _mirrored(images: np.ndarray) -> np.ndarray:
    return images[:, :, ::-1]


def _shifted(down: int, right: int) -> Callable[[np.ndarray], np.ndarray]:
    """The view moved by a twentieth of the shorter side in the directions given as −1, 0 or 1."""

    def view(images: np.ndarray) -> np.ndarray:
        _, height, width, _ = images.shape
        step = max(1, min(height, width) // _SHIFT_SHARE)
        rows = np.clip(np.arange(height) - down * step, 0, height - 1)
        columns = np.clip(np.arange(width) - right * step, 0, width - 1)
        return images[:, rows][:, :, columns]

    return view


def _turned(degrees: float) -> Callable[[np.ndarray], np.ndarray]:
    """The view turned about its middle, counter-clockwise if positive; bilinear."""

    def view(images: np.ndarray) -> np.ndarray:
        _, height, width, _ = images.shape
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        y, x = np.mgrid[:height, :width].astype(np.float64)
        y -= (height - 1) / 2
        x -= (width - 1) / 2
        rows = np.clip(cosine * y + sine * x + (height - 1) / 2, 0, height - 1)  # where each pixel comes from
        columns = np.clip(cosine * x - sine * y + (width - 1) / 2, 0, width - 1)
        top, left = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
        bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
        down, over = (rows - top)[..., None], (columns - left)[..., None]
        turned = np.empty_like(images)
        for start in range(0, len(images), _CHUNK):
            part = images[start : start + _CHUNK]
            upper = part[:, top, left] * (1 - over) + part[:, top, right] * over
            lower = part[:, bottom, left] * (1 - over) + part[:, bottom, right] * over
            turned[start : start + _CHUNK] = np.rint(upper * (1 - down) + lower * down)
        return turned

    return view


def _lit(fifths: int) -> Callable[[np.ndarray], np.ndarray]:
    def view(images: np.ndarray) -> np.ndarray:
        return np.minimum((images.astype(np.uint16) * fifths + 2) // 5, 255).astype(np.uint8)

    return view


VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": _as_it_is,
    "mirrored": _mirrored,
    "shifted up": _shifted(-1, 0),
    "shifted down": _shifted(1, 0),
    "shifted left": _shifted(0, -1),
    "shifted right": _shifted(0, 1),
    "turned left": _turned(DEGREES),
    "turned right": _turned(-DEGREES),
    "lighter": _lit(_LIGHTER),
    "darker": _lit(_DARKER),
}
"""By name, in the order of their rows."""
