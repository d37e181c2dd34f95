"""What there is to train on: the recipe in force, the data folder packed for it, and who is left out.

Tested in `tests/service/training/test_spec.py`.
"""

from __future__ import annotations

from typing import cast

from sqlmodel import select

from service.context import LINE, Context
from service.models import registry
from service.settings import Settings
from service.store.engine import reading
from service.store.tables import Deployment, Tombstone
from service.training.spec import PackedImages, keep_open
from unlearning.faces import Faces, pack
from unlearning.faces.decoding import Proportions
from unlearning.recipes import Recipe, load_recipe


def recipe_of(context: Context) -> Recipe:
    """The recipe in force."""
    return load_recipe(context.settings.recipe)


def pack_images(settings: Settings, recipe: Recipe, classes: tuple[str, ...] | None = None) -> PackedImages:
    """The data folder as it is now, packed at the recipe's size if it is not yet."""
    faces = pack(
        settings.data_folder,
        size=recipe.image_size,
        channels=recipe.channels,
        proportions=cast(Proportions, recipe.proportions),
        cache=settings.packed_folder,
        classes=classes,
    )
    return keep_open(images_with(settings, recipe, faces.classes, faces.manifest_digest), faces)


def images_in_service(context: Context, recipe: Recipe) -> PackedImages:
    """The same with the classes of the model in service: an erasure may take the last image of one."""
    with reading(context.engine) as s:
        deployment = s.get(Deployment, LINE)
    classes = tuple(registry.get(context, deployment.committed_digest).manifest["classes"]) if deployment else None
    return pack_images(context.settings, recipe, classes)


def asked_to_go(context: Context, faces: Faces) -> set[str]:
    """Training subjects with a tombstone: whoever trains anything from now on leaves them out."""
    with reading(context.engine) as s:
        tombstones = set(s.exec(select(Tombstone.subject_hash)))
    return {subject for subject in faces.train_subjects() if context.keyring.subject_hash(subject) in tombstones}


def images_with(settings: Settings, recipe: Recipe, classes: tuple[str, ...], manifest_digest: str) -> PackedImages:
    """The packed arrays of a data folder with that manifest; nothing is packed or checked here."""
    return PackedImages(
        folder=settings.data_folder,
        cache=settings.packed_folder,
        size=recipe.image_size,
        channels=recipe.channels,
        classes=classes,
        manifest_digest=manifest_digest,
        proportions=cast(Proportions, recipe.proportions),
    )
