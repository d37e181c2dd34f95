"""API keys: made, listed, rotated, revoked and looked up.

A key reads `exp_<id>_<random>` and comes in `Authorization: Bearer <key>`, nowhere else (no query parameter, no second
header: one place to redact). Stored is its SHA-256, which for 256 random bits needs no salt and no slow hash. The id is
the client's: rotating keeps it, so a client keeps its requests.

Scopes do not imply one another:

predict         send images
erasure:write   file erasure requests and cancel its own
erasure:read    see its own requests and their certificates
audit:read      see everybody's requests and certificates, the log, the models
admin           decide: extend, reject, approve, roll back; sees everybody's requests too
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlmodel import Session, col, or_, select

from service.errors import InvalidInputError, NotAllowedError, NotAuthenticatedError, NotFoundError
from service.store.engine import fit_id, reading
from service.store.tables import ApiKey

PREDICT, WRITE, READ, AUDIT, ADMIN = "predict", "erasure:write", "erasure:read", "audit:read", "admin"
SCOPES: Final = (PREDICT, WRITE, READ, AUDIT, ADMIN)


@dataclass(frozen=True)
class Client:
    """Who holds a key, and what the key allows."""

    id: str
    name: str
    scopes: frozenset[str]

    @property
    def sees_all(self) -> bool:
        """Whether other clients' requests are shown to it."""
        return bool(self.scopes & {AUDIT, ADMIN})

    def demand(self, *scopes: str) -> Client:
        """Itself, if it holds one of the scopes.

        Raises:
            NotAllowedError: it holds none of them.
        """
        if self.scopes.isdisjoint(scopes):
            raise NotAllowedError(f"Expected a key with the scope {' or '.join(scopes)}; ask the operator for one.")
        return self


def create_key(
    session: Session,
    *,
    name: str,
    scopes: Collection[str],
    now: datetime,
    key_id: str,
    expires_at: datetime | None = None,
    most_open: int | None = None,
) -> tuple[ApiKey, str]:
    """Add a key in the caller's transaction; the second part is the key itself, shown this once.

    Args:
        name: of the client, for people.
        scopes: one or more of `SCOPES`.
        now: aware time.
        key_id: the client's id, letters, digits and hyphens.
        expires_at: the moment from which the key is refused; none: never.
        most_open: open requests the client may have; none: as in the settings.

    Raises:
        InvalidInputError: no scope, an unknown one, an unfit id or name, or an expiry in the past.
    """
    unknown = set(scopes) - set(SCOPES)
    if unknown or not scopes:
        raise InvalidInputError(
            f"Expected scopes among {', '.join(SCOPES)}, got {', '.join(sorted(unknown)) or 'none'}."
        )
    if not fit_id(key_id):
        raise InvalidInputError("Expected a key id of 1 to 80 letters, digits and hyphens.")
    if not name.strip() or not name.isprintable():
        raise InvalidInputError("Expected a name of printable characters in one line, to tell the key by.")
    if expires_at is not None and expires_at <= now:
        raise InvalidInputError(f"Expected an expiry after {now.isoformat()}, got {expires_at.isoformat()}.")
    token = _new_token(key_id)
    ordered = [scope for scope in SCOPES if scope in scopes]
    row = ApiKey(
        id=key_id, name=name, sha256=digest_of(token), scopes=ordered, most_open=most_open, created_at=now,
        expires_at=expires_at, revoked_at=None, previous_until=None,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row, token


def list_keys(session: Session) -> list[ApiKey]:
    """All keys, oldest first, the revoked ones too."""
    return list(session.exec(select(ApiKey).order_by(col(ApiKey.created_at), col(ApiKey.id))))


def rotate_key(session: Session, key_id: str, *, old_until: datetime | None = None) -> tuple[ApiKey, str]:
    """Give a client a new secret under its old id, in the caller's transaction.

    Args:
        old_until: until when the old secret works too; none: it ends at once. One before the old one ends in any case.

    Raises:
        NotFoundError: no such key, or it was revoked.
    """
    row = find_key(session, key_id)
    if row.revoked_at is not None:
        raise NotFoundError(f"Expected a key that was not revoked, {key_id} was; create a new one.")
    token = _new_token(key_id)
    row.previous_sha256, row.previous_until = (row.sha256, old_until) if old_until else (None, None)
    row.sha256 = digest_of(token)
    session.add(row)
    session.flush()
    return row, token


def revoke_key(session: Session, key_id: str, *, now: datetime) -> ApiKey:
    """End a key in the caller's transaction; ending it twice changes nothing."""
    row = find_key(session, key_id)
    row.revoked_at = row.revoked_at or now
    row.previous_sha256 = row.previous_until = None
    session.add(row)
    return row


def expire_key(session: Session, key_id: str, *, at: datetime) -> ApiKey:
    """Let a key end at a moment, in the caller's transaction."""
    row = find_key(session, key_id)
    row.expires_at = at
    session.add(row)
    return row


def find_key(session: Session, key_id: str) -> ApiKey:
    """Row of a key.

    Raises:
        NotFoundError: no such key.
    """
    row = session.get(ApiKey, key_id) if fit_id(key_id) else None
    if row is None:
        raise NotFoundError(f"Expected a key with the id {key_id!a}, found none.")
    return row


def any_usable_key(session: Session, *, now: datetime) -> bool:
    """Whether anybody could be let in; without a key the service does not start."""
    valid = or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now)
    return session.exec(select(ApiKey.id).where(col(ApiKey.revoked_at).is_(None), valid).limit(1)).first() is not None


def authenticate(engine: sa.Engine, token: str, *, now: datetime) -> Client:
    """Who holds the key, looked up in the database.

    Raises:
        NotAuthenticatedError: unknown, expired or revoked; which of these is not said.
    """
    return find_holder(engine, token, now=now)[0]


def find_holder(engine: sa.Engine, token: str, *, now: datetime) -> tuple[Client, datetime | None]:
    """Who holds the key, and until when it is good; none: without an end.

    Raises:
        NotAuthenticatedError: unknown, expired or revoked; which of these is not said.
    """
    row = _valid_row(engine, token, now)
    ends = [row.expires_at] if digest_of(token) == row.sha256 else [row.expires_at, row.previous_until]
    return _client(row), min((end for end in ends if end is not None), default=None)


def holder(engine: sa.Engine, key_id: str, *, now: datetime) -> tuple[Client, str]:
    """Who holds a key, and the key's SHA-256, for whoever proved to have it earlier.

    Raises:
        NotAuthenticatedError: unknown, expired or revoked; which of these is not said.
    """
    with reading(engine) as s:
        row = s.get(ApiKey, key_id)
    if row is None or not _is_valid(row, now):
        raise NotAuthenticatedError("Expected a valid API key; this one is unknown, expired or revoked.")
    return _client(row), row.sha256


def _new_token(key_id: str) -> str:
    return f"exp_{key_id}_{secrets.token_urlsafe(32)}"


def digest_of(token: str) -> str:
    """SHA-256 (hex) of a key."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _valid_row(engine: sa.Engine, token: str, now: datetime) -> ApiKey:
    """Row of a key that may be used: found by the id in it, then compared by digest in constant time."""
    prefix, _, rest = token.partition("_")
    key_id, _, secret = rest.partition("_")
    if prefix == "exp" and secret and fit_id(key_id):
        with reading(engine) as s:
            row = s.get(ApiKey, key_id)
        if row is not None and _is_secret_of(row, digest_of(token), now) and _is_valid(row, now):
            return row
    raise NotAuthenticatedError("Expected a valid API key; this one is unknown, expired or revoked.")


def _is_secret_of(row: ApiKey, digest: str, now: datetime) -> bool:
    is_current = hmac.compare_digest(row.sha256, digest)
    is_previous = hmac.compare_digest(row.previous_sha256 or "", digest)
    return is_current or (is_previous and row.previous_until is not None and now < row.previous_until)


def _is_valid(row: ApiKey, now: datetime) -> bool:
    return row.revoked_at is None and (row.expires_at is None or now < row.expires_at)


def _client(row: ApiKey) -> Client:
    return Client(row.id, row.name, frozenset(row.scopes))
