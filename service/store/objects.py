"""A store that machines share instead of a file system, at any URL that fsspec knows: `s3://`, `gs://`, `abfs://` …

It holds whole objects whose names contain the SHA-256 of their content, so none is ever written twice with different
bytes. A store is trusted with nothing: what is written is read back, what is fetched is checked by the caller against a
row signed with this service's key, and what is destroyed is looked for in a fresh listing.

Credentials and endpoints are the store's own affair (`AWS_…`, `GOOGLE_APPLICATION_CREDENTIALS`, fsspec's
`FSSPEC_<PROTOCOL>_…`). Destroying means what the store means by it: buckets with versioning, object lock or backups
keep what was deleted (docs/replicas.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from service.errors import StartupError, StorageError


class Storage:
    """Objects below one URL.

    Raises:
        StartupError: no such protocol, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        protocol = url.partition("://")[0]
        options: dict[str, Any] = {"auto_mkdir": True} if protocol in {"file", "local"} else {}
        try:
            self._files, root = fsspec.url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=protocol != "memory", **options
            )
        except (ImportError, ValueError) as error:
            raise StartupError(
                f"Expected EXPUNGE_STORAGE_URL to be a URL such as s3://bucket/folder, got one of {protocol!r}: {error}"
            ) from error
        self._root = root.rstrip("/")

    def __repr__(self) -> str:
        return "Storage()"  # a URL may hold a password

    def publish(self, name: str, content: bytes) -> None:
        """Write an object and read it back; nothing happens if it is there whole.

        Raises:
            StorageError: the store could not be reached, or holds other bytes than it was given.
        """
        if self.fetch(name) == content:
            return
        with _asked(f"take {name}"):
            self._files.pipe_file(self._path(name), content)
        found = self.fetch(name)
        if found != content:
            what = "nothing" if found is None else f"{len(found)} bytes that are not the same"
            raise StorageError(
                f"Expected the shared storage to hold {name} as written, {len(content)} bytes; read back {what}."
            )

    def fetch(self, name: str) -> bytes | None:
        """An object's bytes, unchecked, or none.

        Raises:
            StorageError: the store could not be reached.
        """
        with _asked(f"give {name}"):
            try:
                return bytes(self._files.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def holds(self, name: str) -> bool:
        """Whether there is an object of the name, whole or not.

        Raises:
            StorageError: the store could not be reached.
        """
        folder, _, last = name.rpartition("/")
        return f"{folder}/{last}" in self.names(folder)

    def names(self, folder: str) -> set[str]:
        """Every object below a folder, as the store lists them now.

        Raises:
            StorageError: the store could not be reached.
        """
        with _asked(f"list {folder}"):
            self._files.invalidate_cache()
            found = self._files.find(self._path(folder))
        return {str(path).removeprefix(self._root).lstrip("/") for path in found}

    def destroy(self, name: str) -> None:
        """Delete an object and look whether it is gone; one that is not there is gone.

        Raises:
            StorageError: the store could not be reached, or still lists it.
        """
        if not self.holds(name):
            return
        with _asked(f"destroy {name}"):
            self._files.rm_file(self._path(name))
        if self.holds(name):
            raise StorageError(f"Expected the shared storage to be rid of {name}, it still lists it; destroy it there.")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


@contextmanager
def _asked(what: str) -> Iterator[None]:
    """Every store has errors of its own; messages may hold addresses and credentials, so only the kind is told."""
    try:
        yield
    except Exception as error:
        raise StorageError(
            f"Expected the shared storage to {what}, got {type(error).__name__}; see whether EXPUNGE_STORAGE_URL can "
            "be reached and written with this process's credentials."
        ) from error
