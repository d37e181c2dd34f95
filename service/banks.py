"""Reference banks of the service: which one a forget set is judged by, and building it.

Subjects are put into blocks of at most five per cent by a keyed hash, once (`blocks.json` in the banks' folder). The
bank of a block holds the margins of N models that never saw the block, for the block's images. A forget set within one
block is judged by that bank; one over several blocks gets a bank of its own, trained without exactly those people,
because models left out of different blocks cannot be read as one model row by row.

A person whose erasure waits is left out of every bank built from then on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import unlearning
from audit import durable
from audit.references import Bank, BankKey, BankStore, ReferenceRow, ReferencesError, assign_blocks
from service.context import Context
from service.keyring import Keyring
from service.settings import Settings
from service.trials import Pictures, Rows, Scene, open_pictures, run_trials
from unlearning.faces import Faces
from unlearning.recipes import Recipe

BLOCK_SHARE = 0.05
TRAINING_CODE = ("descent.py", "devices.py", "models.py", "recipes.py", "training.py")

OnProgress = Callable[[int, int], None]
"""Called with (models there, models wanted)."""


@dataclass(frozen=True)
class BankPlan:
    """A bank that is there or can be built.

    Attributes:
        key: names the content: recipe, code, rows trained on, statistic, dtype.
        scene: how its models are trained and what they are scored on.
        example_ids: hash of each scored image, in the order of `scene.scored`.
        tags: keyed hash of each scored image's subject.
    """

    key: BankKey
    scene: Scene
    example_ids: tuple[str, ...]
    tags: tuple[str, ...]


def blocks(settings: Settings, keyring: Keyring, faces: Faces) -> dict[str, str]:
    """Block of every training subject, as keyed hash → block; subjects that are new get new blocks, none ever moves."""
    known = _read_blocks(settings)
    hashes = sorted({keyring.block_hash(subject) for subject in faces.train_subjects()})
    new = [value for value in hashes if value not in known]
    if new:
        n_subjects = len(hashes)
        fresh = assign_blocks(new, share=min(1.0, BLOCK_SHARE * n_subjects / len(new)))
        known |= {value: f"{_digest_of_words(sorted(new))[:8]}-{block}" for value, block in fresh.items()}
        _write_blocks(settings, known)
    return known


def stores(settings: Settings) -> tuple[BankStore, ...]:
    """Every store that may hold a person's columns: the references', and one for each forget set methods met."""
    evaluations = settings.evaluations_folder
    folders = sorted(evaluations.iterdir()) if evaluations.is_dir() else []
    return tuple(BankStore(folder) for folder in (settings.banks_folder, *folders))


def forget_from_blocks(settings: Settings, tags: Iterable[str]) -> None:
    """Take erased subjects out of the block list."""
    gone = set(tags)
    _write_blocks(settings, {value: block for value, block in _read_blocks(settings).items() if value not in gone})


def _read_blocks(settings: Settings) -> dict[str, str]:
    path = settings.banks_folder / "blocks.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return known


def _write_blocks(settings: Settings, known: dict[str, str]) -> None:
    settings.banks_folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(known, indent=0, sort_keys=True)
    durable.overwrite(settings.banks_folder / "blocks.json", content.encode())


def plan_bank(
    context: Context,
    recipe: Recipe,
    pictures: Pictures,
    *,
    forget: Iterable[str],
    absent: Iterable[str] = (),
    n_models: int | None = None,
) -> BankPlan:
    """The bank that judges a forget set.

    Args:
        forget: user ids to forget together; all in the training split.
        absent: user ids whose erasure waits; a bank built now is trained without them.
        n_models: fewest models that will do; by default those a bank was begun with.
    """
    settings, keyring, faces = context.settings, context.keyring, open_pictures(pictures)
    forgotten = set(forget)
    assigned = blocks(settings, keyring, faces)
    touched = {assigned[keyring.block_hash(subject)] for subject in forgotten}
    left_out = forgotten
    if len(touched) == 1:
        block = touched.pop()
        left_out = {s for s in faces.train_subjects() if assigned[keyring.block_hash(s)] == block}
    ready = plan_exact_bank(context, recipe, pictures, left_out, set())
    bank = BankStore(settings.banks_folder).find(ready.key, n_models=n_models)
    if bank is not None and set(ready.example_ids) <= set(bank.example_ids):
        return ready  # built before anybody asked, and nothing is to be trained for it any more
    return plan_exact_bank(context, recipe, pictures, left_out, set(absent) - left_out)


def plan_exact_bank(
    context: Context, recipe: Recipe, pictures: Pictures, left_out: set[str], absent: set[str]
) -> BankPlan:
    """The bank of models trained without exactly `left_out` and `absent`, for the images of `left_out`."""
    faces = open_pictures(pictures)
    retain = faces.where(split="train", without=left_out | absent)
    scored, test = faces.where(split="train", subjects=left_out), faces.where(split="test")
    key = BankKey(
        recipe_digest=recipe.digest,
        code_version=training_code_version(),
        training_digest=rows_digest(faces, retain),
        test_digest=rows_digest(faces, test),
    )
    scene = Scene(
        pictures=pictures, recipe=recipe, retain=retain, scored=scored, retain_scored=retain, test=test,
        device=context.settings.device,
    )  # fmt: skip
    ids = example_ids(faces, scored)
    tags = tuple(context.keyring.block_hash(str(faces.subjects[row])) for row in scored)
    return BankPlan(key, scene, ids, tags)


def build_bank(
    store: BankStore, plan: BankPlan, n_models: int, settings: Settings, on_progress: OnProgress, *, now: datetime
) -> Bank:
    """The plan's bank with `n_models` models; builds what is missing, so a killed build goes on with what it has."""
    begin = partial(
        store.begin, plan.key, example_ids=plan.example_ids, subject_tags=plan.tags, n_wanted=n_models, now=now
    )
    try:
        begin()
    except ReferencesError:  # the people got further images since; their margins need the models, which are gone
        store.discard(plan.key)
        begin()
    missing = store.missing_seeds(plan.key, n_models)
    on_progress(n_models - len(missing), n_models)
    for done, outcome in enumerate(run_trials(plan.scene, missing, settings), n_models - len(missing) + 1):
        row = ReferenceRow(
            seed=outcome.seed,
            example_ids=plan.example_ids,
            margins=outcome.margins,
            retain_accuracy=outcome.retain_accuracy,
            test_accuracy=outcome.test_accuracy,
            seconds=outcome.seconds,
        )
        store.add(plan.key, row)
        on_progress(done, n_models)
    bank = store.find(plan.key, n_models=n_models)  # it may have been begun for more, and stopped
    if bank is None:
        raise RuntimeError(
            f"Expected a complete bank {plan.key.digest[:12]} after building it; its files were changed."
        )
    return bank


def example_ids(faces: Faces, rows: Iterable[int]) -> tuple[str, ...]:
    """Content names of packed images, see `_example_id`; two equal images of one person get different names."""
    seen: dict[str, int] = {}
    names = []
    for row in rows:
        name = _example_id(faces, int(row))
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(names)


def _example_id(faces: Faces, row: int) -> str:
    """SHA-256 (hex, 16 characters) over an image's label and pixels."""
    content = f"{int(faces.labels[row])}:".encode() + np.ascontiguousarray(faces.images[row]).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def rows_digest(faces: Faces, rows: Rows) -> str:
    """Digest of exactly what is trained on, in order: any other pixel, label or row is another bank."""
    digest = hashlib.sha256(repr((faces.images.shape[1:], faces.classes)).encode())
    digest.update(np.ascontiguousarray(faces.labels[rows]).tobytes())
    for start in range(0, len(rows), 4096):
        digest.update(np.ascontiguousarray(faces.images[rows[start : start + 4096]]).tobytes())
    return digest.hexdigest()


@cache
def training_code_version() -> str:
    """Digest of the code that training runs: a change of the loop or of a layer makes old banks a miss."""
    folder = Path(unlearning.__file__).parent
    return _digest_of_words((folder / name).read_text() for name in TRAINING_CODE)


def _digest_of_words(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def columns_of(bank: Bank, example_ids: tuple[str, ...]) -> NDArray[np.float64]:
    """Margins `(n_models, n_examples)` of some of a bank's examples, in the order asked for."""
    return bank.margins[:, bank.columns(example_ids)].astype(np.float64)
