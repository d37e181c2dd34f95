"""Training the production model and taking it into the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from service.context import LINE, Context
from service.errors import ConflictError, PoorModelError
from service.inference.network import network_for
from service.models import deployment, destruction, registry, rosters
from service.models.manifest import Manifest, library_versions
from service.store.engine import reading
from service.store.tables import OpenLine
from service.training.answers import Answers, answers_of, shortcoming, write_report
from service.training.data import asked_to_go, pack_images, recipe_of
from service.training.spec import intact
from unlearning import files
from unlearning.devices import describe_device, resolve_device
from unlearning.faces import Faces
from unlearning.models import save_weights
from unlearning.recipes import Recipe
from unlearning.training import Examples, train

TRAINING = ".training-"  # folders of weights that are not registered yet

OnEpoch = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Production:
    """A production model just trained.

    Attributes:
        train, test: answers for the images it learned from, and for those of held-out subjects.
        shortcoming: a sentence if it is no better than always answering the largest class, else empty.
        seconds: of the training.
        files: the confusion table and the curve of the losses.
    """

    digest: str
    generation: int
    train: Answers
    test: Answers
    shortcoming: str
    seconds: float
    files: tuple[Path, ...]


def made_with(context: Context) -> dict[str, Any]:
    """Versions and device of a candidate made now; with the rest of a certificate's procedure they fix its weights."""
    device = resolve_device(context.settings.device)
    return {"versions": library_versions(), "device": f"{device.type}: {describe_device(device)}"}


def manifest_of(recipe: Recipe, faces: Faces, *, seed: int, lineage: Mapping[str, Any]) -> Manifest:
    """The manifest of weights that the recipe makes of these faces, by these libraries."""
    return Manifest(
        architecture=recipe.architecture, width=recipe.width, channels=recipe.channels, image_size=recipe.image_size,
        classes=faces.classes, recipe=recipe.name, recipe_digest=recipe.digest,
        data_manifest_digest=faces.manifest_digest, seed=seed, versions=library_versions(), lineage=lineage,
        architecture_source=recipe.architecture_source, proportions=recipe.proportions,
    )  # fmt: skip


def train_production(
    context: Context, *, seed: int, on_epoch: OnEpoch | None = None, strict: bool = False
) -> Production:
    """Train on everybody but those who asked to be erased, register the weights, and put them into service.

    Args:
        strict: refuse a model that is no better than always answering the largest class.

    Raises:
        PoorModelError: it is no better, and `strict`. Nothing is kept.
        FacesError: the data folder breaks a rule.
        ConflictError: an erasure runs, or somebody asked to be erased while the model learned from them. The weights
            are destroyed.
        DataChangedError: somebody was erased while the model was trained; nothing is kept.
    """
    settings, recipe = context.settings, recipe_of(context)
    with intact(pack_images(settings, recipe)) as faces:
        absent = asked_to_go(context, faces)
        _refuse_beside_erasures(context, faces, absent)
        context.reached("training.packed")
        rows = faces.where(split="train", without=absent)
        data = Examples.from_arrays(faces.images[rows], faces.labels[rows])
        torch.set_num_threads(1)  # the arithmetic of the references, and no threads that spin beside other work
        n_classes = len(faces.classes)
        losses = []

        def note(epoch: int, epochs: int, loss: float) -> None:
            losses.append(loss)
            if on_epoch is not None:
                on_epoch(epoch, epochs, loss)

        trained = train(recipe, data, n_classes=n_classes, seed=seed, device=settings.device, on_epoch=note)
        learned = answers_of(trained.model, faces, rows)
        tested = answers_of(trained.model, faces, faces.where(split="test"))
    said = shortcoming(learned, tested)
    if said and strict:
        raise PoorModelError(f"{said} It was not taken into service.")
    manifest = manifest_of(recipe, faces, seed=seed, lineage={"method": "train"})
    network = network_for(context, manifest)
    with files.scratch(settings.home, TRAINING) as folder:
        weights = folder / "model.safetensors"
        save_weights(trained.model, weights)
        context.reached("training.saved")
        _refuse_beside_erasures(context, faces, absent)
        digest = registry.add(
            context, weights, manifest, rosters.of_rows(context.keyring, faces, rows), network=network
        )
    context.reached("training.registered")
    try:
        generation = _put_into_service(context, digest, lambda: _refuse_beside_erasures(context, faces, absent))
    except ConflictError:
        if registry.get(context, digest).state == "candidate":
            destruction.destroy(context, digest)
        raise
    written = write_report(settings.reports_folder / "training" / digest[:16], learned, tested, losses)
    return Production(digest, generation, learned, tested, said, trained.seconds, written)


def _put_into_service(context: Context, digest: str, before_commit: Callable[[], None]) -> int:
    pointer = deployment.pointer(context)
    if pointer is None or not pointer.committed_generation:
        return deployment.activate_first(context, digest, before_commit=before_commit)
    return deployment.deploy(context, digest, before_commit=before_commit).generation


def _refuse_beside_erasures(context: Context, faces: Faces, absent: set[str]) -> None:
    """A model that learned from a person must not come into service after the purge of that person.

    Looked at once more between staging and commit, this leaves no gap: a run that ends before that look has left its
    tombstones, and one that deploys after it stages a later version, which takes this one's place or destroys it.
    """
    with reading(context.engine) as s:
        line = s.get(OpenLine, LINE)
    if line is not None:
        raise ConflictError(f"Expected no erasure to be running, found run {line.run_id}; train again when it ended.")
    late = asked_to_go(context, faces) - absent
    if late:
        raise ConflictError(
            f"Expected nobody to ask for erasure while the model was trained, {len(late)} did; train again."
        )
