"""Drawing faces: from numbers that describe people and poses to images, with NumPy alone.

A face is painted in layers, back to front: background, hair, shoulders, head, marks of age, eyes, nose, mouth, beard,
hair again, glasses. Coordinates are the face's own: u to the right and v down, 0 in its middle, 1 half an image away.
A layer is a soft mask in [0, 1], of an ellipse or a line, blended over what is there; edges are a pixel wide, so small
images are antialiased. Everything is vectorised over a batch of faces.

Age works as on people. Children have round heads, large low eyes and no lines; grey hair, a high hairline, folds, bags
under the eyes and thin lips come later, each with an onset of the person's own. So age can be read off a face, but not
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

N_TRAITS = 27
"""Numbers in [0, 1) that describe a person."""
N_POSE = 16
"""Numbers in [0, 1) that describe one image of them."""

_SKIN = np.array([[250, 224, 205], [238, 200, 172], [222, 176, 140], [190, 138, 100], [141, 96, 66], [98, 66, 48]])
_HAIR = np.array([[24, 20, 20], [54, 36, 26], [96, 62, 38], [150, 66, 32], [176, 130, 70], [222, 190, 120]])
_IRIS = np.array([[46, 28, 20], [86, 56, 32], [104, 98, 56], [70, 110, 84], [84, 128, 170]])
_GREY = np.array([[208.0, 208.0, 210.0]])

Batch = np.ndarray
"""float32 `(n, 1, 1)`: one number a face, ready to meet pixels."""


@dataclass(frozen=True, eq=False)
class Person:
    """What the layers ask about each face of a batch; `traits` and `pose` are `(k, n, 1, 1)`, colours `(n, 3)`."""

    traits: np.ndarray
    pose: np.ndarray
    age: Batch
    child: Batch  # 1 for the youngest, 0 from two fifths of a life on
    old: Batch  # 0 up to a third of a life, then up to 1
    yaw: Batch  # how far the features are turned to one side
    half_width: Batch
    half_height: Batch
    eyes: Batch  # height at which the eyes lie
    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    cloth: np.ndarray


class Canvas:
    """Images being painted.

    Args:
        u, v: float32 `(n, height, width)`, face coordinates of the pixels.
        pixel: Size of a pixel in these coordinates.

    Attributes:
        planes: float32 `(3, n, height, width)`, red, green and blue in 0..255.
    """

    def __init__(self, u: np.ndarray, v: np.ndarray, pixel: float) -> None:
        self.u, self.v, self.pixel = u, v, pixel
        self.planes = np.empty((3, *u.shape), dtype=np.float32)

    def ellipse(
        self,
        u: Batch | float,
        v: Batch | float,
        half_width: Batch | float,
        half_height: Batch | float,
        narrowing: np.ndarray | float = 1.0,
    ) -> np.ndarray:
        """Mask of an ellipse around (u, v), squeezed sideways by `narrowing`."""
        across = (self.u - u) * (narrowing / half_width)
        down = (self.v - v) * (1 / half_height)
        across *= across
        down *= down
        across += down
        # 1 - q falls by 2 / r along the radius r at the edge, so this is the distance to the edge in pixels.
        across -= 1
        across *= np.minimum(half_width, half_height) * (-0.5 / self.pixel)
        across += 0.5
        return np.clip(across, 0, 1, out=across)

    def above(self, line: np.ndarray | Batch | float, softness: float = 1.0) -> np.ndarray:
        """Mask of what lies above the line v = `line`."""
        mask = (line - self.v) * (1 / (self.pixel * softness))
        mask += 0.5
        return np.clip(mask, 0, 1, out=mask)

    def stroke(self, line: np.ndarray | Batch | float, thickness: Batch | float) -> np.ndarray:
        """Mask of a line v = `line` of this half thickness; below a pixel it gets fainter instead of thinner."""
        finest = self.pixel * 0.7
        mask = np.abs(self.v - line)
        mask *= -1 / np.maximum(thickness, finest)
        mask += 1
        np.maximum(mask, 0, out=mask)
        mask *= np.minimum(thickness / finest, 1)
        return mask

    def paint(self, mask: np.ndarray, colour: np.ndarray) -> None:
        """Blend colours `(n, 3)` over the canvas."""
        for plane, value in zip(self.planes, colour.T, strict=True):
            np.add(plane, mask * (value[:, None, None] - plane), out=plane)

    def darken(self, mask: np.ndarray) -> None:
        """Take the share `mask` of the light away (negative: add)."""
        self.planes *= 1 - mask


def draw_faces(traits: np.ndarray, ages: np.ndarray, poses: np.ndarray, *, size: tuple[int, int]) -> np.ndarray:
    """Paint one image a row.

    Args:
        traits: float `(n, N_TRAITS)` in [0, 1): the person.
        ages: float `(n,)` in [0, 1]: from a small child to an old person.
        poses: float `(n, N_POSE)` in [0, 1): turn, light, expression, background.
        size: (height, width) in pixels.

    Returns:
        float32 `(3, n, height, width)` in 0..255.
    """
    person = _person(traits, ages, poses)
    canvas = _place(person.pose, size)
    for layer in (
        _background,
        _back_hair,
        _shoulders,
        _head,
        _lines_of_age,
        _eyes,
        _nose,
        _mouth,
        _beard,
        _front_hair,
        _glasses,
        _light,
    ):
        layer(canvas, person)
    return np.clip(canvas.planes, 0, 255, out=canvas.planes)


def _person(traits: np.ndarray, ages: np.ndarray, poses: np.ndarray) -> Person:
    """What follows from the numbers for all layers."""
    columns = np.ascontiguousarray(traits.T, dtype=np.float32)[:, :, None, None]
    pose = np.ascontiguousarray(poses.T, dtype=np.float32)[:, :, None, None]
    age = ages.astype(np.float32)[:, None, None]
    child = np.clip(1 - age / 0.4, 0, 1)
    old = np.clip((age - 0.35) / 0.65, 0, 1)
    grey = np.clip((age - 0.45 - 0.25 * columns[2]) / 0.2, 0, 1)[:, :, 0]
    return Person(
        traits=columns,
        pose=pose,
        age=age,
        child=child,
        old=old,
        yaw=0.2 * (pose[3] - 0.5),
        half_width=0.46 + 0.09 * columns[3] + 0.05 * child,
        half_height=0.64 + 0.08 * columns[4] - 0.06 * child,
        eyes=-0.06 + 0.11 * child + 0.04 * (columns[5] - 0.5),
        skin=_mix(_SKIN, traits[:, 0]),
        hair=((1 - grey) * _mix(_HAIR, traits[:, 1] ** 1.5) + grey * _GREY).astype(np.float32),
        iris=_mix(_IRIS, traits[:, 10]),
        cloth=(35 + 190 * poses[:, 8:11]).astype(np.float32),
    )


def _mix(palette: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Colours `(n, 3)` float32 along a palette at positions `(n,)` in [0, 1]."""
    place = where * (len(palette) - 1)
    return np.stack([np.interp(place, np.arange(len(palette)), tone) for tone in palette.T], axis=1).astype(np.float32)


def _where(condition: np.ndarray, yes: float, no: float = 0.0) -> np.ndarray:
    """`np.where` that stays in float32."""
    return np.where(condition, np.float32(yes), np.float32(no))


def _place(pose: np.ndarray, size: tuple[int, int]) -> Canvas:
    """Canvas whose faces are shifted, scaled and tilted by the pose."""
    height, width = size
    pixel = 2 / min(height, width)
    x = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) * np.float32(pixel))[None, None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5 - height / 2) * np.float32(pixel))[None, :, None]
    x = x - 0.16 * (pose[0] - 0.5)
    y = y - 0.12 * (pose[1] - 0.5) - 0.04
    zoom = 1 / (0.98 + 0.16 * pose[2])
    tilt = 0.3 * (pose[4] - 0.5)
    cos, sin = np.cos(tilt) * zoom, np.sin(tilt) * zoom
    return Canvas(x * cos + y * sin, y * cos - x * sin, pixel)


def _background(canvas: Canvas, person: Person) -> None:
    """A wall, a little warm or cold, brighter on top or below."""
    wall = canvas.v * (40 * (person.pose[7] - 0.5)) + (60 + 150 * person.pose[5])
    warmth = 30 * (person.pose[6] - 0.5)
    for plane, share in zip(canvas.planes, (1.0, 0.1, -1.0), strict=True):
        np.add(wall, warmth * share, out=plane)


def _back_hair(canvas: Canvas, person: Person) -> None:
    """Hair behind the head: long on nearly half of the people."""
    length = np.maximum(person.traits[6] - 0.55, 0) * (1 - 0.7 * person.child)
    mask = canvas.ellipse(0, 1.1 * length - 0.14, person.half_width + 0.11, 0.60 + 1.1 * length)
    canvas.paint(mask * np.minimum(length * 12, 1), person.hair * 0.75)


def _shoulders(canvas: Canvas, person: Person) -> None:
    """Neck and clothes; the clothes change from image to image."""
    canvas.paint(canvas.ellipse(0, 0.62, person.half_width * 0.6, 0.46), person.skin * 0.78)
    canvas.paint(canvas.ellipse(0, 1.32, 0.98, 0.46), person.cloth)


def _head(canvas: Canvas, person: Person) -> None:
    """Ears, and an ellipse that narrows to the jaw: little on children, less again when cheeks sag."""
    ear = 0.10 + 0.06 * person.traits[7]
    for side in (-1, 1):
        canvas.paint(
            canvas.ellipse(side * person.half_width - person.yaw, 0.04, ear * 0.6, ear * 1.3), person.skin * 0.84
        )
    jaw = (0.35 + 0.45 * person.traits[8]) * (1 - 0.5 * person.child) - 0.25 * person.old * person.traits[9]
    below = np.maximum(canvas.v, 0)
    below *= below
    mask = canvas.ellipse(0, 0, person.half_width, person.half_height, 1 + jaw * below)
    canvas.paint(mask, person.skin)
    rim = canvas.u * canvas.u * 1.6
    rim += canvas.v * canvas.v * 0.6
    rim -= 0.12
    canvas.darken(mask * np.clip(rim, -0.05, 0.3, out=rim))
    blush = person.skin + np.array([[14.0, -18.0, -14.0]], dtype=np.float32)
    cheeks = canvas.ellipse(person.yaw - 0.27, 0.2, 0.15, 0.12) + canvas.ellipse(person.yaw + 0.27, 0.2, 0.15, 0.12)
    canvas.paint(cheeks * (0.25 + 0.6 * person.child), blush)


def _lines_of_age(canvas: Canvas, person: Person) -> None:
    """Lines on the forehead, folds from nose to mouth, bags under the eyes, spots; each with an onset of its own."""
    u = canvas.u - person.yaw
    wide = np.clip(1.35 - np.abs(u) * 4, 0, 1)  # lines of the forehead end before the temples
    depth = 0.42 * np.clip((person.age - 0.30 - 0.15 * person.traits[11]) / 0.45, 0, 1)
    arch = 0.25 * u * u
    for height in (0.22, 0.33, 0.44):
        canvas.darken(canvas.stroke(person.eyes - height + arch, 0.028) * wide * depth)
    depth = 0.36 * np.clip((person.age - 0.35 - 0.2 * person.traits[12]) / 0.4, 0, 1)
    side = np.abs(u)
    fold = np.clip(1 - np.abs(side - 0.16 - 0.34 * (canvas.v - 0.16)) * (1 / max(0.04, canvas.pixel)), 0, 1)
    fold *= canvas.above(0.42, 3.0) * (1 - canvas.above(0.20, 3.0))
    canvas.darken(fold * depth)
    depth = 0.38 * np.clip((person.age - 0.4 - 0.2 * person.traits[13]) / 0.4, 0, 1)
    bag = np.clip(1 - np.abs(side - 0.22) * 7, 0, 1)
    canvas.darken(canvas.stroke(person.eyes + 0.14, 0.04) * bag * depth)
    spots = canvas.ellipse(person.yaw + 0.36 * (person.traits[14] - 0.5), 0.1 + 0.4 * person.traits[15], 0.035, 0.035)
    canvas.darken(spots * _where(person.traits[16] > 0.6, 0.45))


def _eyes(canvas: Canvas, person: Person) -> None:
    """Brows, whites, irises that look aside, pupils and upper lids; lids fall with age and in some images."""
    apart = 0.205 + 0.05 * (person.traits[17] - 0.5)
    large = (0.070 + 0.025 * person.traits[18]) * (1 + 0.35 * person.child)
    blink = 1 - _where(person.pose[11] > 0.93, 0.85)
    opened = (0.62 - 0.22 * person.old) * (0.8 + 0.4 * person.pose[12]) * blink
    look = 0.05 * (person.pose[13] - 0.5)
    slant = 0.5 * (person.traits[19] - 0.5)
    brow = 0.016 + 0.022 * person.traits[20] * (1 - 0.7 * person.child)
    white = np.full_like(person.skin, 236.0)
    black = np.full_like(person.skin, 14.0)
    for side in (-1, 1):
        u = side * apart + person.yaw
        across = canvas.u - u
        span = np.clip((1.7 - np.abs(across) * (1 / large)) * 2, 0, 1)
        above = person.eyes - 0.135 - 0.02 * person.pose[14] - side * slant * 0.3 * across + 3.0 * across * across
        canvas.paint(canvas.stroke(above, brow) * span * (0.9 - 0.4 * person.child), person.hair * 0.6)
        canvas.darken(canvas.ellipse(u, person.eyes, large * 1.5, large * 1.1) * 0.16)
        ball = canvas.ellipse(u, person.eyes, large * 1.2, large * opened)
        canvas.paint(ball, white)
        canvas.paint(ball * canvas.ellipse(u + look, person.eyes, large * 0.66, large * 0.66), person.iris)
        canvas.paint(ball * canvas.ellipse(u + look, person.eyes, large * 0.3, large * 0.3), black)
        lid = person.eyes - large * opened + 2.2 * across * across
        canvas.darken(canvas.stroke(lid, 0.016) * np.clip((1.3 - np.abs(across) * (1 / large)) * 3, 0, 1) * 0.7)


def _nose(canvas: Canvas, person: Person) -> None:
    """A ridge with a lit and a dark side, and the shadow under the tip; nose and ears never stop growing."""
    tip = 0.17 + 0.06 * person.traits[21] + 0.02 * person.old - 0.02 * person.child
    wide = 0.055 + 0.035 * person.traits[22] + 0.012 * person.old
    u = canvas.u - 1.5 * person.yaw
    length = 1 - canvas.above(person.eyes + 0.02, 2.0)
    length *= canvas.above(tip)
    shade = np.clip(1 - np.abs(np.abs(u) - wide * 0.8) * (1 / wide), 0, 1)
    canvas.darken(shade * length * _where(u * (person.pose[15] - 0.5) > 0, 0.14, 0.04))
    canvas.darken(canvas.ellipse(1.5 * person.yaw, tip - 0.03, wide * 0.7, wide * 0.6) * -0.10)
    canvas.darken(canvas.stroke(tip + 0.015, 0.022) * np.clip((wide * 1.5 - np.abs(u)) * 16, 0, 1) * 0.38)


def _mouth(canvas: Canvas, person: Person) -> None:
    """Lips along a curve, from sad to smiling, at times open on teeth; thinner with age."""
    wide = (0.15 + 0.06 * person.traits[23]) * (1 - 0.15 * person.child)
    height = 0.37 + 0.04 * (person.traits[24] - 0.5)
    smile = 2.6 * (person.pose[14] - 0.35)
    u = canvas.u - 1.1 * person.yaw
    line = height + smile * (wide * wide * 0.5 - u * u)
    span = np.clip((wide - np.abs(u)) * 14, 0, 1)
    full = (0.030 + 0.022 * person.traits[25]) * (1 - 0.55 * person.old)
    lips = person.skin * np.array([[0.86, 0.58, 0.58]], dtype=np.float32)
    canvas.paint(canvas.stroke(line, full * 1.7) * span * 0.9, lips)
    opened = np.maximum(person.pose[12] - 0.6, 0) * 0.11
    canvas.paint(canvas.stroke(line, opened) * span, np.full_like(lips, 225.0))
    canvas.darken(canvas.stroke(line + opened, 0.014) * span * 0.5)


def _beard(canvas: Canvas, person: Person) -> None:
    """A beard on a fifth of the grown-up people with short hair: cheeks and chin, but not the mouth."""
    grown = np.clip((person.age - 0.2) * 20, 0, 1)
    bearded = _where((person.traits[6] < 0.5) & (person.traits[26] > 0.6), 0.85)
    below = np.maximum(canvas.v, 0)
    jaw = canvas.ellipse(0, 0, person.half_width, person.half_height, 1 + 0.55 * below * below)
    mask = jaw * (1 - canvas.above(0.26 - 0.9 * canvas.u * canvas.u, 3.0))
    mask *= 1 - canvas.ellipse(1.1 * person.yaw, 0.375, 0.15, 0.06)
    canvas.paint(mask * (grown * bearded), person.hair * 0.85)


def _front_hair(canvas: Canvas, person: Person) -> None:
    """Hair on top, down to a hairline that climbs with age, on some people to a bald head; thin on small children."""
    bald = np.clip((person.age - 0.3 - 0.3 * person.traits[20]) / 0.4, 0, 1) * _where(person.traits[6] < 0.5, 1, 0.2)
    parting = 0.5 * (person.traits[19] - 0.5)
    u = canvas.u - 0.5 * person.yaw
    fringe = 0.30 + 0.14 * person.traits[14] - 0.10 * person.child
    line = (0.9 + 1.6 * bald) * u * u + parting * u - (fringe - 0.02) - 0.26 * bald
    dome = canvas.ellipse(0, -0.06, person.half_width + 0.07, person.half_height + 0.02)
    thick = 1 - 0.75 * np.clip(person.child * 2 - 1.2, 0, 1) - 0.35 * bald
    canvas.paint(dome * canvas.above(np.minimum(line, 0.12), 1.5) * thick, person.hair)


def _glasses(canvas: Canvas, person: Person) -> None:
    """Frames on a fifth of the people, more of them when old: a bad sign of age, as in life."""
    worn = _where(person.traits[16] < 0.12 + 0.25 * person.old, 0.85)
    apart = 0.205 + 0.05 * (person.traits[17] - 0.5)
    frame = np.zeros_like(canvas.u)
    for side in (-1, 1):
        u = side * apart + person.yaw
        outer = canvas.ellipse(u, person.eyes + 0.02, 0.165, 0.135)
        frame = np.maximum(frame, outer - canvas.ellipse(u, person.eyes + 0.02, 0.125, 0.10))
    bridge = canvas.stroke(person.eyes, 0.02) * np.clip((0.1 - np.abs(canvas.u - person.yaw)) * 12, 0, 1)
    canvas.paint(np.maximum(frame, bridge) * worn, person.iris * 0.4)


def _light(canvas: Canvas, person: Person) -> None:
    """Light from one side, brighter or darker."""
    side = canvas.u * (0.36 * (person.pose[15] - 0.5))
    side += 0.82 + 0.3 * person.pose[5]
    canvas.planes *= side
