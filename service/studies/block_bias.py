"""`expunge references validate`: how large blocks may be, and how stale banks, before the audit misleads.

Some people of the training split are retrained without, exactly, and these models are audited against references that
left out more people than the one, or that learned from people gone since (`audit.studies.block_bias`). Blocks are
nested, so that the people share them. The banks are ordinary ones: a killed validation goes on where it was, and an
erasure destroys the person's columns in them like in any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from audit.studies.block_bias import Bias, Curve, Point, bias, svg, table
from service.banks.build import OnProgress, build_bank, columns_of, example_ids, plan_exact_bank
from service.banks.store import Bank, BankStore
from service.context import Context
from service.errors import InvalidInputError
from service.settings import Settings
from service.training.data import asked_to_go, images_in_service, recipe_of
from service.training.jobs import release_processes
from service.training.spec import PackedImages, intact, open_images
from unlearning.devices import describe_device, resolve_device
from unlearning.faces import Faces
from unlearning.faces.dataset import METADATA
from unlearning.faces.sources import synthetic

SHARES = (0.01, 0.02, 0.05, 0.10, 0.20)
STALE_SHARES = (0.05, 0.20)
EXACT_SEEDS = 1_000_000  # the same seed gives the same first weights, and the two samples are to be independent
SYNTHETIC_RECIPE = {
    "name": "validation", "architecture": "small_resnet", "image_size": [16, 16], "channels": 3, "width": 16,
    "epochs": 12, "batch_size": 32, "learning_rate": 0.1, "flip": True,
}  # fmt: skip
N_SYNTHETIC, N_GONE, N_IMAGES = 200, 40, 5


@dataclass(frozen=True)
class Sizes:
    """How much is measured: people judged, models a bank, people for whom chance itself is shown."""

    n_people: int = 3
    n_models: int = 64
    n_controls: int = 1


@dataclass(frozen=True)
class _Job:
    """One bank: who is left out, who of the gone is absent, which seeds count."""

    kind: str
    share: float
    left_out: tuple[str, ...]
    absent: frozenset[str]
    judged: tuple[str, ...]


def validate_own(context: Context, sizes: Sizes, on_bank: Callable[[int, int], OnProgress]) -> Curve:
    """The service's own people; who asked to be erased takes no part.

    Raises:
        InvalidInputError: too few people.
        DataChangedError: somebody was erased meanwhile.
    """
    recipe = recipe_of(context)
    images = images_in_service(context, recipe)
    faces = open_images(images)
    absent = asked_to_go(context, faces)
    people = sorted(set(faces.train_subjects()) - absent, key=context.keyring.block_hash)
    if len(people) < 10:
        raise InvalidInputError(f"Expected at least 10 people in the training split, got {len(people)}.")
    title = f"{recipe.name}, {len(people)} people"
    return _measure(context, images, people, absent, [], title, sizes, on_bank)


def validate_synthetic(settings: Settings, sizes: Sizes, on_bank: Callable[[int, int], OnProgress]) -> Curve:
    """Drawn people in a home of their own within the service's."""
    home = settings.home / "validation"
    home.mkdir(parents=True, exist_ok=True)
    (home / "recipe.json").write_text(json.dumps(SYNTHETIC_RECIPE))
    own = settings.model_copy(update={"home": home, "recipe": str(home / "recipe.json"), "database_url": ""})
    if not (own.data_folder / METADATA).exists():
        n = round((N_SYNTHETIC + N_GONE) / 0.8)
        synthetic.write_folder(own.data_folder, n_subjects=n, images_per_subject=N_IMAGES, size=(16, 16), seed=5)
    context = Context.open(own)
    recipe = recipe_of(context)
    images = images_in_service(context, recipe)
    people = sorted(open_images(images).train_subjects())
    order = [people[i] for i in np.random.default_rng(0).permutation(len(people))]
    gone, people = order[:N_GONE], order[N_GONE : N_GONE + N_SYNTHETIC]
    rest = set(order[N_GONE + N_SYNTHETIC :])
    try:
        return _measure(context, images, people, rest, gone, f"drawn faces, {len(people)} people", sizes, on_bank)
    finally:
        context.engine.dispose()
        release_processes()


def _measure(  # noqa: PLR0917
    context: Context, images: PackedImages, people: list[str], absent: set[str], gone: list[str], title: str,
    sizes: Sizes, on_bank: Callable[[int, int], OnProgress],
) -> Curve:  # fmt: skip
    recipe, store = recipe_of(context), _store(context.settings)
    judged = people[: sizes.n_people]
    jobs = _jobs(people, judged, gone, sizes.n_controls)

    def build(number: int, left_out: tuple[str, ...], absent_now: set[str], first_seed: int) -> Bank:
        plan = replace(plan_exact_bank(context, recipe, images, set(left_out), absent_now), sample=None)
        told = on_bank(number, len(jobs) + len(judged))
        now = context.now()
        return build_bank(store, plan, sizes.n_models, context.settings, told, now=now, first_seed=first_seed)

    with intact(images) as faces:
        exact = {
            person: build(number, (person,), absent | set(gone), EXACT_SEEDS) for number, person in enumerate(judged, 1)
        }
        points = []
        for number, job in enumerate(jobs, len(judged) + 1):
            bank = build(number, job.left_out, absent | set(job.absent), 0)
            found = tuple(_bias(faces, person, exact[person], bank) for person in job.judged)
            points.append(Point(job.kind, job.share, found))
    return Curve(title, len(people), sizes.n_models, tuple(points))


def _jobs(people: list[str], judged: list[str], gone: list[str], n_controls: int) -> list[_Job]:
    """The exact training drawn again (also what a block of one person is), nested blocks, then banks that are stale."""
    jobs = [_Job("exact", 1 / len(people), (person,), frozenset(gone), (person,)) for person in judged[:n_controls]]
    sizes = dict.fromkeys(max(2, round(share * len(people))) for share in SHARES)
    for size in sizes:
        block = people[:size]
        jobs.append(
            _Job("block", size / len(people), tuple(block), frozenset(gone), tuple(p for p in judged if p in block))
        )
    smallest = tuple(judged)
    for share in STALE_SHARES if gone else ():
        n_gone = round(share * len(people))
        jobs.append(_Job("stale", n_gone / len(people), smallest, frozenset(gone[n_gone:]), tuple(judged)))
    return jobs


def _bias(faces: Faces, person: str, exact: Bank, bank: Bank) -> Bias:
    """Exact retrains against references, on the person's images; the control's bank holds both kinds of seeds."""
    ids = example_ids(faces, faces.where(split="train", subjects=[person]))
    retrained, references = exact.seeds >= EXACT_SEEDS, bank.seeds < EXACT_SEEDS
    return bias(columns_of(exact, ids)[retrained], columns_of(bank, ids)[references], seed=0)


def _store(settings: Settings) -> BankStore:
    return BankStore(settings.evaluations_folder / "validation")


def write_report(curves: list[Curve], settings: Settings, folder: Path) -> tuple[Path, ...]:
    """`references.json`, `references.svg` and `references.md` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    device = describe_device(resolve_device(settings.device))
    figures = {"device": device, "curves": [asdict(curve) for curve in curves]}
    written = {"json": json.dumps(figures, indent=1), "svg": svg(curves), "md": table(curves)}
    for suffix, text in written.items():
        (folder / f"references.{suffix}").write_text(text, encoding="utf-8")
    return tuple(folder / f"references.{suffix}" for suffix in written)
