"""What a model answers, and whether it tells its classes apart at all.

A model that answers one class for every image says the same of everybody. Whoever is erased from it, an audit finds no
difference, so each audit passes and its certificate says nothing. Such a model is therefore not judged.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from audit.report.drawings import loss_curve
from service.context import Context
from service.errors import PoorModelError
from service.models import deployment, registry
from service.models.building import build_model
from service.training.data import images_in_service, recipe_of
from service.training.spec import Rows, intact
from unlearning.faces import Faces
from unlearning.training import Examples, logits

REMEDY = 'Train longer or with another recipe; docs/own-data.md, "When a model is no good", says how.'

_BATCH = 256  # images looked at before it is decided whether to look at more


@dataclass(frozen=True)
class Answers:
    """One model's answers for some images.

    Attributes:
        classes: names, in the order of the model's outputs.
        confusion: int64 `(n_classes, n_classes)`, number of images by label (row) and by class answered (column).
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]

    @property
    def n_images(self) -> int:
        """Images looked at."""
        return int(self.confusion.sum())

    @property
    def n_labels(self) -> int:
        """Classes that the images are of."""
        return int((self.confusion.sum(axis=1) > 0).sum())

    @property
    def n_answered(self) -> int:
        """Classes answered for at least one image."""
        return int((self.confusion.sum(axis=0) > 0).sum())

    @property
    def accuracy(self) -> float:
        """Share of the images that the model is right on; NaN without images."""
        return float(self.confusion.trace() / self.n_images) if self.n_images else float("nan")

    @property
    def largest_share(self) -> float:
        """Share of the largest class: the accuracy of always answering it; NaN without images."""
        return float(self.confusion.sum(axis=1).max() / self.n_images) if self.n_images else float("nan")

    def table(self) -> list[list[str]]:
        """Head and rows of the confusion: a label, then how many of its images got each answer."""
        rows = [[name, *map(str, row)] for name, row in zip(self.classes, self.confusion.tolist(), strict=True)]
        return [["label", *(f"answered {name}" for name in self.classes)], *rows]


def answers_of(model: nn.Module, faces: Faces, rows: Rows) -> Answers:
    """The model's answers for some rows."""
    n_classes, labels = len(faces.classes), faces.labels[rows]
    answered = _answered(model, faces, rows) if len(rows) else labels
    counts = np.bincount(labels * n_classes + answered, minlength=n_classes**2)
    return Answers(faces.classes, counts.reshape(n_classes, n_classes))


def shortcoming(train: Answers, test: Answers) -> str:
    """A sentence on a model that is no better than always answering the largest class; empty: it is better.

    It is looked at on the test images, or on those it learned from where the test images are not of several classes.
    """
    shown, of = (test, "images of held-out subjects") if test.n_labels > 1 else (train, "images it learned from")
    if shown.n_labels < 2 or (shown.n_answered > 1 and shown.accuracy > shown.largest_share):
        return ""
    n_classes = len(shown.classes)
    what = "answers one class only" if shown.n_answered == 1 else "is no better than always answering the largest class"
    sentence = (
        f"The model {what}: it is right on {shown.accuracy:.1%} of the {shown.n_images} {of}, the largest class is "
        f"{shown.largest_share:.1%} of them, and it ever answers {shown.n_answered} of {n_classes} classes."
    )
    if train.n_labels > 1 and (train.confusion + test.confusion).any(axis=0).sum() == 1:
        sentence += (
            " Reference models, studies and erasures refuse it: every audit of it passes, since it says the same of "
            "everybody."
        )
    return f"{sentence} {REMEDY}"


def refusal(which: str, model: nn.Module, faces: Faces, learned: Rows) -> str | None:
    """Why a model is not to be judged; none: it answers more than one class for the images of training and test.

    One that could learn one class only, because the others' last subjects are erased, is not refused for it: nobody's
    erasure must wait for ever. The first answer that differs ends the look, so it takes long for a poor model only.

    Args:
        which: the model, in the sentence.
        learned: rows it learned from.
    """
    if len(np.unique(faces.labels[learned])) < 2:
        return None
    rows = np.concatenate([faces.where(split="train"), faces.where(split="test")])
    seen: set[int] = set()
    for start in range(0, len(rows), _BATCH):
        seen.update(_answered(model, faces, rows[start : start + _BATCH]).tolist())
        if len(seen) > 1:
            return None
    return (
        f"Expected {which} to tell its classes apart, but it answers one class only, for all {len(rows)} images of "
        f"training and test: every audit of it passes, since it says the same of everybody. {REMEDY}"
    )


def require_good_model_in_service(context: Context) -> None:
    """Nothing if the model in service may be judged, or if there is none by the recipe in force.

    Raises:
        PoorModelError: it answers one class only.
        DataChangedError: somebody was erased from the data meanwhile.
    """
    pointer, recipe = deployment.pointer(context), recipe_of(context)
    if pointer is None or not pointer.committed_digest:
        return
    weights = registry.load_checked(context, pointer.committed_digest)
    if weights.manifest.recipe_digest != recipe.digest:
        return
    with intact(images_in_service(context, recipe)) as faces:
        reason = refusal("the model in service", build_model(weights), faces, faces.where(split="train"))
    if reason is not None:
        raise PoorModelError(reason)


def shortcoming_in_service(context: Context) -> str:
    """`shortcoming` of the model in service, on the data as they are.

    Raises:
        DataChangedError: somebody was erased from the data meanwhile.
    """
    pointer = deployment.pointer(context)
    if pointer is None or not pointer.committed_digest:
        return ""
    model = build_model(registry.load_checked(context, pointer.committed_digest))
    with intact(images_in_service(context, recipe_of(context))) as faces:
        learned, tested = (answers_of(model, faces, faces.where(split=split)) for split in ("train", "test"))
    return shortcoming(learned, tested)


def write_report(folder: Path, train: Answers, test: Answers, losses: Sequence[float]) -> tuple[Path, Path]:
    """`confusion.csv` and `losses.svg` in a folder: numbers of images by class, and the loss of each epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    (head, *rows), (_, *test_rows) = train.table(), test.table()
    writer.writerow(["split", *head])
    writer.writerows([["train", *row] for row in rows] + [["test", *row] for row in test_rows])
    table, curve = folder / "confusion.csv", folder / "losses.svg"
    table.write_text(text.getvalue(), encoding="utf-8")
    curve.write_text(loss_curve(losses), encoding="utf-8")
    return table, curve


def _answered(model: nn.Module, faces: Faces, rows: Rows) -> NDArray[np.int64]:
    """Position of the class answered for each row."""
    z = logits(model, Examples.from_arrays(faces.images[rows], faces.labels[rows]).images)  # (n, n_classes)
    return z.argmax(axis=1)
