"""Model versions: weights named by the SHA-256 of their safetensors file, each with a signed manifest.

The file `models/<digest>.safetensors` and the row of the same digest belong together; the row's signature covers the
digest and the manifest, so neither can be exchanged without the signing key. A manifest may also name a converted
network (`networks`), which OpenVINO computes with. Every operation may be repeated after a kill at any point and ends
in the same state.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlmodel import Session, col, select

from service.context import LINE, Context
from service.errors import NotFoundError, WeightsError
from service.models import networks, rosters
from service.models.manifest import Manifest
from service.settings import Settings
from service.store.engine import fit_id, reading, session
from service.store.tables import ModelVersion
from unlearning import files

Content = bytes | mmap.mmap

SPARE = "spare"
"""State of a model that was trained ahead without a block of subjects (`service.banks.spares`) and never served. Its
roster says whom it remembers, whatever its age."""
_NOT_SIGNED = (
    "Expected the manifest of {} to be signed with this service's key; it was altered or signed with another key."
)


@dataclass(frozen=True)
class CheckedWeights:
    """Bytes of a safetensors file whose digest and signature were verified; parse these bytes, not the file again.

    Attributes:
        content: in pages of its own if that was asked for.
        network: the manifest's converted network, verified too; None without one, and where PyTorch computes.
    """

    digest: str
    manifest: Manifest
    content: Content = field(repr=False)
    network: bytes | None = field(repr=False, default=None)


def path(settings: Settings, digest: str) -> Path:
    """File of the weights."""
    return settings.models_folder / f"{digest}.safetensors"


def get(context: Context, digest: str) -> ModelVersion:
    """Row of the weights.

    Raises:
        NotFoundError: no such version on this line.
    """
    with reading(context.engine) as s:
        return find(s, digest)


def find(s: Session, digest: str) -> ModelVersion:
    """Row of the weights, in a transaction.

    Raises:
        NotFoundError: no such version on this line.
    """
    row = s.get(ModelVersion, digest) if fit_id(digest) else None
    if row is None or row.line != LINE:
        raise NotFoundError(f"Expected a model version of line {LINE!r}, found none named {digest}.")
    return row


def versions(context: Context) -> list[ModelVersion]:
    """Rows of the line, oldest first."""
    with reading(context.engine) as s:
        query = select(ModelVersion).where(ModelVersion.line == LINE).order_by(col(ModelVersion.created_at))
        return list(s.exec(query))


def add(
    context: Context,
    weights: Path,
    manifest: Manifest,
    learned_from: Mapping[str, int] | None = None,
    *,
    state: str = "candidate",
    network: bytes | None = None,
) -> str:
    """Take a copy of a weights file into the registry and give its digest.

    Adding the same weights again changes nothing, but for a roster that was missing.

    Args:
        learned_from: the version's roster, see `rosters`; none where it is not known.
        state: of a version that is not there yet; `SPARE` for a model that was trained ahead.
        network: converted from the manifest, which then names it; see `service.inference.network.network_for`.

    Raises:
        WeightsError: these very weights were destroyed here; they do not come back.
    """
    content = weights.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    manifest = replace(manifest, network="" if network is None else networks.digest_of(network))
    with session(context.engine) as s:
        row = s.get(ModelVersion, digest)
        if row is not None and row.state == "destroyed":
            raise WeightsError(f"Expected new weights, got {digest}, which were destroyed on purpose; train again.")
        if row is None:
            signature = context.keyring.sign(_signed_bytes(digest, manifest))
            s.add(
                ModelVersion(
                    digest=digest, line=LINE, state=state, manifest=manifest.to_dict(), signature=signature,
                    created_at=context.now(),
                )
            )  # fmt: skip
        if learned_from is not None and not rosters.read(s, digest):
            rosters.write(s, digest, learned_from)
        s.commit()  # the rows first: no file without a row that leads to its destruction
    context.reached("deploying.row")
    if network is not None:
        networks.store(context, network)
    _store(path(context.settings, digest), content, reached=lambda point: context.reached(f"deploying.{point}"))
    publish(context, digest)
    return digest


def publish(context: Context, digest: str) -> None:
    """Put weights and network into the shared storage, if there is one; nothing happens if they are there.

    Raises:
        NotFoundError: no such version.
        WeightsError: as `load_checked`.
        StorageError: the storage did not take them.
    """
    if (storage := context.known_storage()) is not None:
        weights = load_checked(context, digest)
        storage.publish(stored_name(digest), bytes(weights.content))
        if weights.network is not None:
            networks.publish(storage, weights.network)


def is_held(context: Context, digest: str) -> bool:
    """Whether there are weights of the name, here or in the shared storage, whole or not."""
    if path(context.settings, digest).exists():
        return True
    storage = context.known_storage()
    return storage is not None and storage.holds(stored_name(digest))


def bring_here(context: Context, digest: str) -> Path:
    """The weights as a file of this home, fetched from the shared storage if need be.

    Raises:
        NotFoundError, WeightsError, StorageError: as `load_checked`.
    """
    file = path(context.settings, digest)
    if not file.exists():
        _store(file, bytes(load_checked(context, digest).content))
    return file


def load_checked(context: Context, digest: str, *, in_pages: bool = False) -> CheckedWeights:
    """Weights and manifest, after both were verified against the signature.

    What is not in this home comes from the shared storage, into memory only: a home that does not destroy weights must
    not keep any.

    Args:
        in_pages: a file's bytes in pages of their own, which go back to the system as OpenVINO's model is made of them;
            for whoever parses them once.

    Raises:
        NotFoundError: no such version.
        WeightsError: destroyed, missing, altered, or not signed with this service's key.
        StorageError: the shared storage could not be reached.
    """
    row = get(context, digest)
    if row.state == "destroyed":
        raise WeightsError(f"Expected weights that may be loaded, got {digest}, which were destroyed.")
    manifest = _verify(context, row)
    content, where = _content(context, digest, in_pages=in_pages)
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise WeightsError(
            f"Expected weights with SHA-256 {digest}, found {found} in the {where}; restore it from a backup."
        )
    needs_network = context.settings.backend == "openvino"
    return CheckedWeights(
        digest, manifest, content, networks.load_checked(context, manifest) if needs_network else None
    )


def _content(context: Context, digest: str, *, in_pages: bool) -> tuple[Content, str]:
    """Bytes under the weights' name, unchecked, and where they were found."""
    file = path(context.settings, digest)
    try:
        return _in_pages(file) if in_pages else file.read_bytes(), "file"
    except FileNotFoundError as error:
        content = context.storage.fetch(stored_name(digest)) if context.storage is not None else None
        if content is None:
            raise WeightsError(f"Expected the weights {digest} in {file.parent}: {error.strerror}.") from error
        return content, "shared storage"
    except OSError as error:
        raise WeightsError(f"Expected the weights {digest} in {file.parent}: {error.strerror}.") from error


def _in_pages(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        n_bytes = os.fstat(file.fileno()).st_size
        pages = mmap.mmap(-1, max(1, n_bytes), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        file.readinto(pages)
    return pages


def stored_name(digest: str) -> str:
    """Name of the weights in the shared storage."""
    return f"{networks.STORED}/{digest}.safetensors"


def _store(file: Path, content: bytes, reached: Callable[[str], None] = lambda point: None) -> None:
    if not file.exists() or file.read_bytes() != content:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.overwrite(file, content, mode=0o666, reached=reached)


def _verify(context: Context, row: ModelVersion) -> Manifest:
    try:
        manifest = Manifest.from_dict(row.manifest)
    except (TypeError, ValueError) as error:
        raise WeightsError(_NOT_SIGNED.format(row.digest)) from error
    if not context.keyring.verifies(row.signature, _signed_bytes(row.digest, manifest)):
        raise WeightsError(_NOT_SIGNED.format(row.digest))
    return manifest


def _signed_bytes(digest: str, manifest: Manifest) -> bytes:
    return f"expunge model version\n{digest}\n{manifest.digest}\n".encode()
