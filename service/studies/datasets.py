"""Homes in which methods are studied: public data prepared by one command, with people set apart for two uses.

Methods are tuned on some forget sets and reported on others; nobody is in both. Each world is a home of its own below
the service's, so a study touches neither the service's data nor its database.

The AT&T people reported on were chosen by hand as easy and hard ones to forget: s31 always wears glasses, s4, s7 and
s17 now and then. The network's shape was chosen by cross-validation over the training people, they among them.

Tested in `tests/service/studies/test_comparison.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.context import Context
from service.errors import InvalidInputError
from service.settings import Settings
from unlearning.faces.dataset import METADATA
from unlearning.faces.sources import att, synthetic

ForgetSet = tuple[str, ...]
"""User ids forgotten together."""


@dataclass(frozen=True)
class World:
    """Data, a recipe, and who is forgotten in them.

    Attributes:
        title: what a table calls the data.
        tuning: forget sets for searches, and nothing else.
        reported: forget sets for tables, by the name a table gives them.
    """

    title: str
    recipe: str
    tuning: tuple[ForgetSet, ...]
    reported: dict[str, ForgetSet]


N_DRAWN, IMAGES_DRAWN = 200, 4
WORLDS = {
    "att": World(
        title="AT&T faces",
        recipe="att_small",
        tuning=(("s2",), ("s10",), ("s20",), ("s34",)),
        reported={"s31": ("s31",), "s4": ("s4",), "s7": ("s7",), "s17": ("s17",)},
    ),
    "synthetic": World(
        title="drawn faces",
        recipe="synthetic_small",
        tuning=(tuple(synthetic.user_id(n) for n in (1, 2, 3, 4)),),
        reported={"drawn": tuple(synthetic.user_id(n) for n in (7, 8, 9, 10))},  # 2 % of the people
    ),
}


def open_world(name: str, settings: Settings) -> Context:
    """The world's home, with its data written if they are not there yet.

    Raises:
        InvalidInputError: no such world.
        FacesError: the images cannot be had.
    """
    if name not in WORLDS:
        raise InvalidInputError(f"Expected a world of {', '.join(WORLDS)}, got {name!r}.")
    home = settings.home / "worlds" / name
    world = settings.model_copy(
        update={"home": home, "recipe": WORLDS[name].recipe, "database_url": "", "workflow_database_url": ""}
    )
    context = Context.open(world)
    if not (world.data_folder / METADATA).exists():
        _WRITERS[name](world.data_folder, settings.home / "downloads")
    return context


def _write_att(folder: Path, downloads: Path) -> None:
    downloads.mkdir(parents=True, exist_ok=True)
    att.write_folder(att.find_or_download_wheel(downloads), folder)


def _write_synthetic(folder: Path, downloads: Path) -> None:
    synthetic.write_folder(folder, n_subjects=N_DRAWN, images_per_subject=IMAGES_DRAWN, seed=0)


_WRITERS = {"att": _write_att, "synthetic": _write_synthetic}
