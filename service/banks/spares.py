"""Spares: for each block of subjects the weights of one model that was trained ahead without the block.

When somebody of the block asks to be erased, the spare is a model trained without them, and methods that start from it
(`unlearning.methods.spare`) have little or nothing to train. It is trained as the block's references are, with a seed
of its own, and is none of them: what judges it never depended on it.

A spare is a model version of the state `registry.SPARE` with a roster. Whoever is erased is remembered by the spares of
all *other* blocks; the purge destroys these like any version that remembers the person, and they are trained anew in
the background. They are kept only if a policy's ladder has a rung that starts from one.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlmodel import col, select

from service.banks.build import BankPlan, OnProgress, rows_digest, training_code_version
from service.context import LINE, Context
from service.models import destruction, registry, rosters
from service.models.manifest import Manifest, library_versions
from service.settings import Settings
from service.store.engine import reading
from service.store.tables import ModelVersion, OpenLine
from service.training.data import asked_to_go
from service.training.spec import Rows, open_images, require_intact
from unlearning import files
from unlearning.faces import Faces
from unlearning.recipes import Recipe

if TYPE_CHECKING:
    from service.training.jobs import Outcome

log = structlog.get_logger()

UNKNOWN_MAX = 0.05
"""Largest share of the subjects trained on that a usable spare may not know, its block aside: they came since."""


@dataclass(frozen=True)
class Spare:
    """A spare that may be used.

    Attributes:
        digest: of its weights.
        seed: of its training.
        seconds: of its training.
        rows: training rows it learned from, `(n_rows,)`.
    """

    digest: str
    seed: int
    seconds: float
    rows: Rows = field(repr=False)


def registration_lock(settings: Settings, *, exclusive: bool) -> AbstractContextManager[None]:
    """Shared by whoever registers a spare, exclusive to whoever destroys those that remember somebody.

    The purge overwrites images first. Who registers looks, within the lock, whether they are whole: so a spare is
    either seen by the purge or never registered.
    """
    return files.lock(settings.banks_folder / "locks" / "spares.lock", exclusive=exclusive)


def find(context: Context, recipe: Recipe, faces: Faces, without: Collection[str], *, only: str = "") -> Spare | None:
    """The spare that knows most of the subjects and none of these; none if there is no usable one.

    One that other versions of the libraries trained is not usable: trained again it would have other weights, and a
    certificate names the versions that are here.

    Args:
        faces: the packed data as they are; a spare counts only if all it learned from is still there unchanged.
        without: user ids, for example those of a run.
        only: digest of the one spare that counts; empty: all do.
    """
    hash_of = {context.keyring.subject_hash(subject): subject for subject in faces.train_subjects()}
    asked = {context.keyring.subject_hash(subject) for subject in without}
    gone = {context.keyring.subject_hash(subject) for subject in asked_to_go(context, faces)}
    best: tuple[int, Spare] | None = None
    for version, manifest, roster in _all(context):
        known = roster.keys()
        if (
            (only and version != only)
            or not known
            or known & asked
            or not known <= hash_of.keys()
            or (best and best[0] >= len(known))
            or (manifest.recipe_digest, manifest.classes) != (recipe.digest, faces.classes)
            or _libraries(manifest.versions) != _libraries(library_versions())
            or manifest.lineage["code_version"] != training_code_version()
        ):
            continue
        unknown = len(hash_of.keys() - known - gone) - manifest.lineage["n_left_out"]
        if unknown > UNKNOWN_MAX * len(hash_of):
            continue
        rows = faces.where(split="train", subjects={hash_of[each] for each in known})
        if rows_digest(faces, rows) != manifest.lineage["training_digest"] or not registry.is_held(context, version):
            continue
        best = len(known), Spare(version, manifest.seed, manifest.lineage["seconds"], rows)
    return best[1] if best else None


def _libraries(versions: Mapping[str, str]) -> dict[str, str]:
    """Without our own version: of our code it is `training_code_version` that matters."""
    return {name: version for name, version in versions.items() if name != "expunge"}


def _all(context: Context) -> Iterator[tuple[str, Manifest, dict[str, int]]]:
    """Digest, manifest and roster of every spare, the newest first."""
    with reading(context.engine) as s:
        query = select(ModelVersion).where(ModelVersion.line == LINE, ModelVersion.state == registry.SPARE)
        found = list(s.exec(query.order_by(col(ModelVersion.created_at).desc(), col(ModelVersion.digest))))
        read = [(version, rosters.read(s, version.digest)) for version in found]
    for version, roster in read:
        yield version.digest, Manifest.from_dict(version.manifest), roster


def count(context: Context) -> int:
    """How many spares there are, usable or not."""
    return sum(1 for _ in _all(context))


def cost_seconds(context: Context) -> float:
    """Seconds that training the spares that are there took."""
    return sum(manifest.lineage["seconds"] for _, manifest, _ in _all(context))


def renewal_seconds(context: Context, used: str, subject_hashes: Iterable[str]) -> float:
    """Seconds that training took of the spare used for an erasure, and of those that learned from its subjects."""
    asked = set(subject_hashes)
    return sum(
        manifest.lineage["seconds"]
        for digest, manifest, roster in _all(context)
        if digest == used or not asked.isdisjoint(roster)
    )


def lacking(context: Context, recipe: Recipe, plans: Iterable[BankPlan]) -> list[BankPlan]:
    """Of the banks of some blocks, those whose block has no usable spare."""
    return [plan for plan in plans if find(context, recipe, open_images(plan.spec.images), _block_of(plan)) is None]


def _block_of(plan: BankPlan) -> set[str]:
    faces = open_images(plan.spec.images)
    return {faces.people[index] for index in faces.subject_of[plan.spec.scored]}


def train_spares(context: Context, recipe: Recipe, plans: Sequence[BankPlan], on_progress: OnProgress) -> int:
    """Train and register a spare for each block that lacks one; gives how many.

    Args:
        plans: the exact bank of each block (`service.banks.build.plan_exact_bank`).

    Raises:
        DataChangedError: somebody was erased meanwhile; spares registered before stay, unless they remember them.
    """
    from service.training.jobs import in_children, run_trial  # torch, which nobody needs who looks up or purges
    from service.training.production import TRAINING

    todo = lacking(context, recipe, plans)
    on_progress(len(plans) - len(todo), len(plans))
    if todo:
        plan_of = {secrets.randbelow(2**31): plan for plan in todo}
        with files.scratch(context.settings.home, TRAINING) as folder:
            calls = ((plan.spec, seed, folder / f"{seed}.safetensors") for seed, plan in plan_of.items())
            for done, outcome in enumerate(in_children(run_trial, calls, context.settings), 1):
                _register(context, recipe, plan_of[outcome.seed], outcome, folder / f"{outcome.seed}.safetensors")
                context.reached("building.spare")
                on_progress(len(plans) - len(todo) + done, len(plans))
    _destroy_unusable(context, recipe, plans)
    return len(todo)


def _register(context: Context, recipe: Recipe, plan: BankPlan, outcome: Outcome, weights: Path) -> None:
    from service.inference.network import network_for
    from service.training.production import manifest_of

    faces = open_images(plan.spec.images)
    lineage = {
        "method": "spare",
        "training_digest": plan.key.training_digest,
        "code_version": plan.key.code_version,
        "n_left_out": len(_block_of(plan)),
        "seconds": outcome.seconds,
    }
    manifest = manifest_of(recipe, faces, seed=outcome.seed, lineage=lineage)
    network, roster = network_for(context, manifest), rosters.of_rows(context.keyring, faces, plan.spec.retain)
    with registration_lock(context.settings, exclusive=False):
        require_intact(plan.spec.images)
        registry.add(context, weights, manifest, roster, state=registry.SPARE, network=network)


def _destroy_unusable(context: Context, recipe: Recipe, plans: Iterable[BankPlan]) -> None:
    """Destroy spares that no block would use; none while a run is open, whose plan may name one."""
    with reading(context.engine) as s:
        if s.get(OpenLine, LINE) is not None:
            return
    used = set()
    for plan in plans:
        found = find(context, recipe, open_images(plan.spec.images), _block_of(plan))
        used |= {found.digest} if found else set()
    if superseded := [digest for digest, _, _ in _all(context) if digest not in used]:
        log.info("spares.superseded", n=len(superseded))
        destruction.destroy(context, *superseded)
