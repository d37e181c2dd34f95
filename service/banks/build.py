"""Reference banks of the service: which one a forget set is judged by, and building it.

Subjects are put into blocks of at most five per cent by a keyed hash, once (`service.banks.blocks`). The bank of a
block holds the margins of N models trained without the block, for the block's images. A forget set within one block is
judged by that bank; one over several blocks gets a bank of its own, trained without exactly those people, because
models left out of different blocks cannot be read as one model row by row.

A person whose erasure waits is left out of every bank built from then on. A bank whose models learned from people who
are gone since, and that differs from the one that would be built now by nothing else, may judge while the share of
those people is within the policy's bar: it is *stale*, and says so (`audit.staleness`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import unlearning
from service.banks import looks
from service.banks.blocks import blocks
from service.banks.file_format import OUT
from service.banks.store import Bank, BankKey, BankStore, Claim, ReferenceRow, ReferencesError, Staleness
from service.context import Context
from service.errors import ConflictError
from service.keys.keyring import Keyring
from service.settings import Settings
from service.training.spec import (
    PackedImages,
    Rows,
    TrialSpec,
    intact,
    open_images,
    require_intact,
    sample_of,
    subjects_of,
)
from unlearning import files
from unlearning.faces import Faces
from unlearning.recipes import Recipe

_CHUNK = 4096  # faces read at a time
NAMED = ("bank", "oracles", "originals")
"""Parts of a run's plan that name a bank."""
TRAINING_CODE = (
    "convolution.py", "descent.py", "devices.py", "factories.py", "models.py", "recipes.py", "resnet18.py",
    "training.py",
)  # fmt: skip

OnProgress = Callable[[int, int], None]
"""Called with (models there, models wanted)."""


@dataclass(frozen=True)
class BankPlan:
    """A bank that is there or can be built.

    Attributes:
        key: names the content: recipe, code, rows trained on, statistic, dtype.
        spec: how its models are trained and what they are scored on.
        example_ids: hash of each scored image, in the order of `spec.scored`.
        tags: keyed hash of each scored image's subject.
        learned, tested: digest of the rows of each person that the models learn from, and are tested on, by keyed hash.
        staleness: how far the bank is from the data as they are; a stale one can be read but not built.
        sample: retained rows that features and others' margins are taken of (`service.banks.looks`); none for neither.
        others: keyed hash of each subject of the sample whose margins are kept.
    """

    key: BankKey
    spec: TrialSpec
    example_ids: tuple[str, ...]
    tags: tuple[str, ...]
    learned: dict[str, str] = field(default_factory=dict)
    tested: dict[str, str] = field(default_factory=dict)
    staleness: Staleness = field(default_factory=Staleness)
    sample: Rows | None = None
    others: tuple[str, ...] = ()


def stores(settings: Settings) -> tuple[BankStore, ...]:
    """Every store that may hold a person's columns: the references', and one for each forget set methods met."""
    evaluations = settings.evaluations_folder
    folders = sorted(evaluations.iterdir()) if evaluations.is_dir() else []
    return tuple(BankStore(folder) for folder in (settings.banks_folder, *folders))


def plan_bank(
    context: Context,
    recipe: Recipe,
    images: PackedImages,
    *,
    forget: Iterable[str],
    absent: Iterable[str] = (),
    n_models: int,
    staleness_max: float = 0.0,
    statistic: str = OUT,
) -> BankPlan:
    """The bank that judges a forget set: the exact one, or a stale one that is there and within the bar.

    Args:
        forget: user ids to forget together; all in the training split.
        absent: user ids whose erasure waits; a bank built now is trained without them, one that learned from them
            before is stale by them.
        n_models: fewest models that will do.
        staleness_max: largest share of people gone that a bank may have learned from or been tested on.
        statistic: of the key; another than the auditor's for the banks of `service.banks.oracles`.
    """
    settings, keyring, faces = context.settings, context.keyring, open_images(images)
    left_out = _left_out(settings, keyring, faces, set(forget))
    waiting = set(absent) - left_out
    exact = plan_exact_bank(context, recipe, images, left_out, waiting)
    exact = replace(exact, key=replace(exact.key, statistic=statistic))
    store = BankStore(settings.banks_folder)
    bank = store.find(exact.key, n_models=n_models)
    if bank is not None and set(exact.example_ids) <= set(bank.example_ids):
        return exact
    found = store.find_stale(
        exact.key,
        example_ids=exact.example_ids,
        learned=exact.learned,
        tested=exact.tested,
        leaving={keyring.block_hash(subject) for subject in waiting},
        n_models=n_models,
        share_max=staleness_max,
    )
    if found is None:
        return exact
    return replace(exact, key=found[0], staleness=found[1])


def _left_out(settings: Settings, keyring: Keyring, faces: Faces, forgotten: set[str]) -> set[str]:
    """Whom the references of a forget set are trained without: its block, or the set itself where it is of several."""
    assigned = blocks(settings, keyring, faces)
    touched = {assigned[keyring.block_hash(subject)] for subject in forgotten}
    if len(touched) != 1:
        return forgotten
    block = touched.pop()
    return {s for s in faces.train_subjects() if assigned[keyring.block_hash(s)] == block}


def plan_exact_bank(
    context: Context, recipe: Recipe, images: PackedImages, left_out: set[str], absent: set[str]
) -> BankPlan:
    """The bank of models trained without exactly `left_out` and `absent`, for the images of `left_out`."""
    faces = open_images(images)
    retain = faces.where(split="train", without=left_out | absent)
    scored, test = faces.where(split="train", subjects=left_out), faces.where(split="test")
    key = BankKey(
        recipe_digest=recipe.digest,
        code_version=training_code_version(),
        training_digest=rows_digest(faces, retain),
        test_digest=rows_digest(faces, test),
        statistic=OUT,
    )
    spec = TrialSpec(
        images=images, recipe=recipe, retain=retain, scored=scored, retain_scored=retain, test=test,
        device=context.settings.device,
    )  # fmt: skip
    learned, tested = roster(context.keyring, faces, retain), roster(context.keyring, faces, test)
    tag_of = {subject: context.keyring.block_hash(subject) for subject in left_out}
    tags = tuple(tag_of[faces.people[person]] for person in faces.subject_of[scored])
    staleness = Staleness(n_learned=len(learned), n_tested=len(tested))
    sample = sample_of(faces, retain)
    others = tuple(context.keyring.block_hash(faces.people[person]) for person in subjects_of(faces, sample))
    return BankPlan(key, spec, example_ids(faces, scored), tags, learned, tested, staleness, sample, others)


def build_bank(
    store: BankStore,
    plan: BankPlan,
    n_models: int,
    settings: Settings,
    on_progress: OnProgress,
    *,
    now: datetime,
    first_seed: int = 0,
    run_id: str = "",
) -> Bank:
    """The plan's bank with `n_models` models of seeds from `first_seed` on; builds what is missing.

    A killed build goes on with what it has.

    Several builders of one bank share the work: each seed is trained by the one that claimed it, and all wait for the
    last one.

    Args:
        run_id: the run that it is built for; only a run may replace a bank that its plan names.

    Raises:
        ReferencesError: the plan is of a stale bank that is not complete any more; its models cannot be made again.
        ConflictError: the bank there lacks images, and an open run is to be judged by it.
        DataChangedError: somebody was erased meanwhile; the models made before stay.
    """
    if plan.staleness.share > 0:
        return _stale_bank(store, plan, n_models, on_progress)
    with intact(plan.spec.images):
        _begin(store, plan, n_models, settings, now, run_id)
        _fill(store, plan, n_models, settings, on_progress, first_seed)
        bank = store.find(plan.key, n_models=n_models)
        if bank is None:
            raise RuntimeError(
                f"Expected a complete bank {plan.key.digest[:12]} after building it; its files were changed."
            )
    return bank


def _begin(  # noqa: PLR0917
    store: BankStore, plan: BankPlan, n_models: int, settings: Settings, now: datetime, run_id: str
) -> None:
    begin = partial(
        store.begin, plan.key, example_ids=plan.example_ids, subject_tags=plan.tags, n_wanted=n_models, now=now,
        learned=plan.learned, tested=plan.tested, before_write=partial(require_intact, plan.spec.images),
    )  # fmt: skip
    try:
        begin()
    except ReferencesError:  # the people got further images since; their margins need the models, which are gone
        if discard_unnamed(store, [plan.key], settings, run_id=run_id):
            raise ConflictError(
                f"Expected no open run to be judged by the bank {plan.key.digest[:12]}, which lacks images that came "
                "since and must be built anew; build it when the run ended."
            ) from None
        begin()
    looks.begin(store, plan, plan.key, now=now)


def _fill(  # noqa: PLR0917
    store: BankStore, plan: BankPlan, n_models: int, settings: Settings, on_progress: OnProgress, first_seed: int
) -> None:
    missing = store.missing_seeds(plan.key, n_models, first=first_seed)
    told = len(missing)
    on_progress(n_models - told, n_models)
    while missing:
        for left in _train(store, plan, missing, settings):
            on_progress(n_models - left, n_models)
            told = left
        left_before, missing = missing, store.missing_seeds(plan.key, n_models, first=first_seed)
        if missing == left_before:
            time.sleep(0.2)  # all that is missing is being trained by others
        elif len(missing) < told:
            told = len(missing)
            on_progress(n_models - told, n_models)


def _stale_bank(store: BankStore, plan: BankPlan, n_models: int, on_progress: OnProgress) -> Bank:
    bank = store.find(plan.key, n_models=n_models)
    if bank is None:
        raise ReferencesError(
            f"Expected the stale bank {plan.key.digest[:12]} to be complete: people it learned from are gone, so what "
            "it lacks cannot be trained. Plan again."
        )
    on_progress(n_models, n_models)
    return bank


def _train(store: BankStore, plan: BankPlan, missing: tuple[int, ...], settings: Settings) -> Iterator[int]:
    """Train and store the seeds that no other builder trains; after each, how many are still missing, as known here."""
    from service.training.jobs import run_trials  # torch, which nobody needs who looks up or purges

    claims: dict[int, Claim] = {}

    def free() -> Iterator[int]:
        for seed in missing:
            claim = store.claim(plan.key, seed)
            if claim is None:
                continue
            if store.holds(plan.key, seed):  # another builder ended it meanwhile
                claim.release()
                continue
            claims[seed] = claim
            yield seed

    try:
        spec = replace(
            plan.spec, with_views=plan.key.n_views > 1, with_relearning=plan.key.with_relearning, sample=plan.sample
        )
        for done, outcome in enumerate(run_trials(spec, free(), settings), 1):
            row = ReferenceRow(
                seed=outcome.seed,
                example_ids=plan.example_ids,
                margins=outcome.views,
                retain_accuracy=outcome.retain_accuracy,
                test_accuracy=outcome.test_accuracy,
                seconds=outcome.seconds,
            )
            looks.keep(store, plan, plan.key, outcome)
            store.add(plan.key, row, before_write=partial(require_intact, plan.spec.images))
            claims.pop(outcome.seed).release()
            yield len(missing) - done
    finally:
        for claim in claims.values():
            claim.release()


def plans_lock(settings: Settings, *, exclusive: bool) -> AbstractContextManager[None]:
    """Shared by whoever makes a run's plan, exclusive to whoever discards banks: a plan names banks that are there."""
    return files.lock(settings.banks_folder / "locks" / "plans.lock", exclusive=exclusive)


def discard_unnamed(
    store: BankStore, keys: Iterable[BankKey], settings: Settings, *, run_id: str = ""
) -> list[BankKey]:
    """Destroy banks, but none that the plan of an open run names; gives those that it left.

    Args:
        run_id: a run whose own plan does not count.
    """
    kept = []
    with plans_lock(settings, exclusive=True):
        named = _named(settings, but_by=run_id)
        for key in keys:
            if key.digest in named:
                kept.append(key)
            else:
                looks.discard(store, key)
                store.discard(key)
    return kept


def _named(settings: Settings, *, but_by: str) -> set[str]:
    """Digests of the banks and oracles in the plans of open runs: a run that ended has no folder any more."""
    named = set()
    for path in settings.runs_folder.glob("*/plan.json"):
        if path.parent.name == but_by:
            continue
        with suppress(OSError, ValueError):  # its run ended just now
            plan = json.loads(path.read_bytes())
            named |= {BankKey(**part["key"]).digest for part in map(plan.get, NAMED) if part}
    return named


def example_ids(faces: Faces, rows: Iterable[int]) -> tuple[str, ...]:
    """Content names of packed images, from label and pixels; two equal images of one person get different names."""
    seen: dict[str, int] = {}
    names = []
    for digest in faces.row_digests(np.asarray(rows, dtype=np.int64)):
        name = hashlib.sha256(digest.tobytes()).hexdigest()[:16]
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(names)


def rows_digest(faces: Faces, rows: Rows) -> str:
    """Digest of exactly what is trained on, in order: any other pixel, label or row is another bank."""
    digest = hashlib.sha256(_form(faces))
    for start in range(0, len(rows), _CHUNK):
        digest.update(faces.row_digests(rows[start : start + _CHUNK]).data)
    return digest.hexdigest()


def roster(keyring: Keyring, faces: Faces, rows: Rows) -> dict[str, str]:
    """Digest of each person's part of some rows, by keyed hash; see `audit.staleness.Roster`."""
    if not len(rows):
        return {}
    ordered = rows[np.argsort(faces.subject_of[rows], kind="stable")]
    people, starts = np.unique(faces.subject_of[ordered], return_index=True)
    form, learned = _form(faces), {}
    for person, start, stop in zip(people, starts, [*starts[1:], len(rows)], strict=True):
        part = faces.row_digests(ordered[start:stop])
        learned[keyring.block_hash(faces.people[person])] = hashlib.sha256(form + part.tobytes()).hexdigest()[:32]
    return learned


def _form(faces: Faces) -> bytes:
    """What all rows have in common: size, channels and the names of the classes."""
    return repr((faces.images.shape[1:], faces.classes)).encode()


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


def views_of(bank: Bank, example_ids: Iterable[str]) -> NDArray[np.float64]:
    """Margins `(n_models, n_views, n_examples)` of some of a bank's examples, in the order asked for."""
    return bank.views[:, :, bank.columns(example_ids)].astype(np.float64)
