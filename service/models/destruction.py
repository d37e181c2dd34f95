"""Destroying weights: single versions, all that came before a generation, all that remember a person, all candidates.

The rows stay and say so. Every operation may be repeated after a kill at any point and ends in the same state.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlmodel import col, func, or_, select

from service.context import LINE, Context
from service.errors import ConflictError, NotFoundError, StorageError
from service.models import networks, registry, rosters
from service.store.engine import reading, session
from service.store.tables import Deployment, ModelVersion
from unlearning import files


def destroy(context: Context, *digests: str) -> None:
    """Overwrite and remove weights, and networks that no other version has; their rows stay and say so.

    Repeating finishes what a kill interrupted.

    From the shared storage they are deleted, and looked for afterwards. What overwriting reaches: `unlearning.files`.

    Raises:
        NotFoundError: no such version; nothing was destroyed.
        ConflictError: a version is active or being staged; nothing was destroyed.
        StorageError: the shared storage could not be reached or still has them; destroying goes on when repeated.
    """
    if not digests:
        return
    with session(context.engine) as s:
        rows = [registry.find(s, digest) for digest in digests]
        pointer = s.get(Deployment, LINE)
        for row in rows:
            if pointer is not None and row.digest in {pointer.committed_digest, pointer.staging_digest}:
                raise ConflictError(
                    f"Expected weights out of service, got {row.digest}, which are active or being staged."
                )
            row.state = "destroyed"  # before the file goes: nobody may stage it from here on
            s.add(row)
        has_network = any(row.manifest.get("network") for row in rows)
        s.commit()
    context.reached("purging.marked")
    places = [registry.path(context.settings, digest) for digest in digests]
    files.destroy(*places, *(left for place in places for left in files.left_beside(place)))  # what a killed `add` left
    if context.storage is not None:
        for name in _stored(context) & set(map(registry.stored_name, digests)):
            context.storage.destroy(name)
    if has_network:
        networks.destroy_unused(context)
    with session(context.engine) as s:
        for digest in digests:
            row = registry.find(s, digest)
            row.destroyed_at = row.destroyed_at or context.now()
            s.add(row)
        rosters.forget(s, digests)
        s.commit()


def destroy_older_than(context: Context, generation: int) -> tuple[str, ...]:
    """Destroy every version that came before the one of `generation`, candidates never deployed included.

    From the same call on, an older generation is refused for ever (`oldest_allowed_generation`).

    Returns:
        digests of those that this call destroyed.

    Raises:
        NotFoundError: no version has the generation.
        ConflictError: an older generation is still the committed one.
    """
    with session(context.engine) as s:
        pointer = s.get(Deployment, LINE)
        if pointer is None or pointer.committed_generation < generation:
            raise ConflictError(f"Expected generation {generation} to be active before older weights are destroyed.")
        pointer.oldest_allowed_generation = max(pointer.oldest_allowed_generation, generation)
        s.add(pointer)
        s.commit()
    return _destroy_all(context, _older_than(context, generation))


def destroy_refused(context: Context) -> tuple[str, ...]:
    """Destroy what came before the oldest generation allowed; see `destroy_older_than`."""
    oldest = _oldest_allowed(context)
    return destroy_older_than(context, oldest) if oldest else ()


def refused(context: Context) -> list[ModelVersion]:
    """Versions that came before the oldest generation allowed, destroyed or not, oldest first."""
    oldest = _oldest_allowed(context)
    return _older_than(context, oldest) if oldest else []


def _oldest_allowed(context: Context) -> int:
    """Generation below which nothing may be served again; 0 while nobody was erased.

    After a restore no version may have the oldest number that is allowed: then it is the next one after it, or the one
    in service, from which somebody is still to be erased.
    """
    with reading(context.engine) as s:
        pointer = s.get(Deployment, LINE)
        if pointer is None or not pointer.oldest_allowed_generation:
            return 0
        allowed = col(ModelVersion.generation) >= pointer.oldest_allowed_generation
        first = s.exec(select(func.min(col(ModelVersion.generation))).where(ModelVersion.line == LINE, allowed)).one()
        return min(pointer.committed_generation, first or pointer.committed_generation)


def _older_than(context: Context, generation: int) -> list[ModelVersion]:
    """Versions before the one of a generation, candidates never deployed included, oldest first.

    Raises:
        NotFoundError: no version has the generation.
    """
    with reading(context.engine) as s:
        of_line = select(ModelVersion).where(ModelVersion.line == LINE)
        kept = s.exec(of_line.where(ModelVersion.generation == generation)).one_or_none()
        if kept is None:
            raise NotFoundError(f"Expected a model version of generation {generation} on line {LINE!r}, found none.")
        never_deployed = col(ModelVersion.generation).is_(None) & (col(ModelVersion.created_at) <= kept.created_at)
        before = of_line.where(
            or_(col(ModelVersion.generation) < generation, never_deployed), col(ModelVersion.state) != registry.SPARE
        )
        rows = s.exec(before.order_by(col(ModelVersion.created_at), col(ModelVersion.digest)))
        return [row for row in rows if row.digest != kept.digest]


def destroy_remembering(context: Context, subject_hashes: Iterable[str]) -> tuple[str, ...]:
    """Destroy every version that learned from one of these people; gives the digests.

    What replaced the model in service destroyed all that came before it. Where no model had to be replaced, because the
    one in service never knew the person, an older one that did may still be kept to go back to.

    Raises:
        ConflictError: the version in service learned from one of them.
        StorageError: as `destroy`.
    """
    with reading(context.engine) as s:
        remembering = sorted({digest for found in rosters.naming(s, subject_hashes).values() for digest in found})
    destroy(context, *remembering)
    return tuple(remembering)


def confirm_destroyed(context: Context) -> None:
    """Look once more for destroyed weights, here and in the shared storage, and destroy what is there again.

    Somebody may have brought a file or an object back from a backup.

    Raises:
        StorageError: the storage keeps what it was told to destroy.
    """
    gone = [version.digest for version in registry.versions(context) if version.destroyed_at is not None]
    stored = _stored(context) if gone else set()
    for digest in gone:
        files.destroy(registry.path(context.settings, digest))
        if context.storage is not None and registry.stored_name(digest) in stored:
            context.storage.destroy(registry.stored_name(digest))


def _stored(context: Context) -> set[str]:
    """Names of the weights in the shared storage.

    What a listing lacks is taken for destroyed, so the weights in service, which were put there, must be in it.

    Raises:
        StorageError: the storage could not be reached, or lists something else than this service's weights.
    """
    if (storage := context.known_storage()) is None:
        return set()
    names = storage.names(networks.STORED)
    with reading(context.engine) as s:
        pointer = s.get(Deployment, LINE)
    if pointer is not None and pointer.committed_digest and registry.stored_name(pointer.committed_digest) not in names:
        raise StorageError(
            f"Expected the shared storage to list the weights in service, {pointer.committed_digest}, among its "
            f"{len(names)} weights: what else it does not list cannot be taken for destroyed. See whether "
            "EXPUNGE_STORAGE_URL leads to this service's store; the worker puts missing weights there when it starts."
        )
    return names


def destroy_candidates(context: Context) -> tuple[str, ...]:
    """Destroy every version that was never deployed and is not being staged; gives the digests."""
    with reading(context.engine) as s:
        pointer = s.get(Deployment, LINE)
        staging = pointer.staging_digest if pointer else None
        rows = s.exec(select(ModelVersion).where(ModelVersion.line == LINE, ModelVersion.state == "candidate")).all()
    return _destroy_all(context, [row for row in rows if row.digest != staging])


def _destroy_all(context: Context, rows: list[ModelVersion]) -> tuple[str, ...]:
    remaining = [row.digest for row in rows if row.destroyed_at is None]
    destroy(context, *remaining)
    return tuple(remaining)
