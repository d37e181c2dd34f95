"""Whether the shared storage is the one this service has used before.

Another bucket under the same name, or one that was emptied, answers like any other: what it does not list would be
taken for destroyed. So the storage holds an object `identity` that only this service's keys give, and the database
remembers that it was put there. From then on a storage without it is not used.

Tested in `tests/service/store/test_objects.py`.
"""

from __future__ import annotations

import hashlib
import hmac

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service.errors import StorageError
from service.keys.keyring import Keyring
from service.store.engine import reading, session
from service.store.objects import Storage
from service.store.tables import KeyMark

OBJECT = "identity"
_MARK = "storage"


def identified(engine: sa.Engine, keyring: Keyring, storage: Storage | None) -> Storage | None:
    """The shared storage, or none if the service has none.

    Raises:
        StorageError: it could not be reached, or it is not the one this service has used before.
    """
    if storage is None:
        return None
    token = hmac.new(keyring.tombstone_key, b"expunge shared storage", hashlib.sha256).hexdigest().encode()
    found = storage.fetch(OBJECT)
    with reading(engine) as s:
        is_known = s.get(KeyMark, _MARK) is not None
    if found == token and is_known:
        return storage
    if found not in (None, token) or is_known:
        raise StorageError(
            f"Expected the shared storage to hold the object {OBJECT!r} that this service put there, found "
            f"{'none' if found is None else 'that of another service'}: it is not the storage used before, or it was "
            "emptied. See where EXPUNGE_STORAGE_URL leads. To move to a new storage, copy all objects of the old one."
        )
    storage.publish(OBJECT, token)
    with session(engine) as s:
        s.add(KeyMark(name=_MARK, mark=hashlib.sha256(token).hexdigest()))
        try:
            s.commit()
        except IntegrityError:  # another process was first, with the same token
            s.rollback()
    return storage
