"""API keys: made, listed, rotated, revoked, looked up, and asked for by a route.

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

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from threading import Lock
from typing import Annotated, Any, Final, get_origin

import sqlalchemy as sa
from fastapi import Request, Response, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from sqlmodel import Session, col, or_, select
from starlette.exceptions import HTTPException

from service.ambiguity import SINGLE, is_json, read_json, refuse_repeated, single_header
from service.db import fit_id, reading
from service.errors import InvalidInputError, NotAllowedError, NotAuthenticatedError, NotFoundError
from service.tables import ApiKey

PREDICT, WRITE, READ, AUDIT, ADMIN = "predict", "erasure:write", "erasure:read", "audit:read", "admin"
SCOPES: Final = (PREDICT, WRITE, READ, AUDIT, ADMIN)
REMEMBER_SECONDS: Final = 1.0  # a revoked key works no longer than this
MAX_BODY_BYTES: Final = 2 << 20  # 1,000 ids of 256 characters, escaped

bearer = HTTPBearer(
    auto_error=False, scheme_name="ApiKey", bearerFormat="exp_<id>_<random>", description="An API key of the service."
)


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
        id=key_id, name=name, sha256=_digest(token), scopes=ordered, most_open=most_open, created_at=now,
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
    row.sha256 = _digest(token)
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
    return _client(_valid_row(engine, token, now))


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


@dataclass(frozen=True)
class _Known:
    """A good key as the database had it at `read_at`."""

    read_at: datetime
    client: Client
    expires_at: datetime | None

    def client_at(self, now: datetime) -> Client | None:
        """The client, if this may still be believed; a clock that was set back makes nothing fresh."""
        is_fresh = 0 <= (now - self.read_at).total_seconds() < REMEMBER_SECONDS
        return self.client if is_fresh and (self.expires_at is None or now < self.expires_at) else None


class KnownKeys:
    """Looks keys up and remembers the good ones for `REMEMBER_SECONDS`, so that predictions need no database read.

    While one look-up of a key is under way, whoever comes with the same key waits for that one.
    """

    def __init__(self, engine: sa.Engine, now: Callable[[], datetime], *, most: int = 1024) -> None:
        self._engine = engine
        self._now = now
        self._most = most
        self._known: dict[str, _Known] = {}  # by SHA-256 of the key
        self._asked: dict[str, asyncio.Task[Client]] = {}
        self._lock = Lock()

    def remembered(self, token: str) -> Client | None:
        """Who holds the key, if that was looked up a moment ago."""
        found = self._known.get(_digest(token))
        return found.client_at(self._now()) if found is not None else None

    async def look_up(self, token: str) -> Client:
        """`authenticate` in another thread, once for all who ask at the same time.

        Raises:
            NotAuthenticatedError: unknown, expired or revoked.
        """
        digest = _digest(token)
        task = self._asked.get(digest)
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            task = asyncio.ensure_future(run_in_threadpool(self.authenticate, token))
            self._asked[digest] = task
            task.add_done_callback(partial(self._answered, digest))
        return await asyncio.shield(task)  # one caller that goes away takes nothing from the others

    def _answered(self, digest: str, task: asyncio.Task[Client]) -> None:
        self._asked.pop(digest, None)
        if not task.cancelled():
            task.exception()  # is told to who waits; all may have gone

    def authenticate(self, token: str) -> Client:
        """Who holds the key; reads the database unless it is remembered.

        Raises:
            NotAuthenticatedError: unknown, expired or revoked.
        """
        client = self.remembered(token)
        if client is not None:
            return client
        now = self._now()  # before the read: what changes after it is seen within REMEMBER_SECONDS
        row = _valid_row(self._engine, token, now)
        digest = _digest(token)
        ends = [row.expires_at] if digest == row.sha256 else [row.expires_at, row.previous_until]
        known = _Known(now, _client(row), min((end for end in ends if end is not None), default=None))
        with self._lock:
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[digest] = known
        return known.client


class Guard:
    """Dependency of a route that lets in only clients with one of the scopes; see `require`."""

    def __init__(self, scopes: tuple[str, ...]) -> None:
        self.scopes = scopes

    async def __call__(
        self, request: Request, _credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)] = None
    ) -> Client:
        return await self.admit(request)

    async def admit(self, request: Request) -> Client:
        """The client of a request, looked up once a request; `KnownKeys` lies in `app.state.keys`."""
        client: Client | None = request.scope.get("expunge.client")
        if client is None:
            client = await client_of(request, request.app.state.keys)
        return client.demand(*self.scopes)


async def client_of(request: Request, keys: KnownKeys) -> Client:
    """Who sent a request; noted in its scope for the log.

    Raises:
        NotAuthenticatedError: no key, or one that is unknown, expired or revoked.
        RequestValidationError: two `Authorization` headers.
    """
    token = bearer_token(single_header(request.headers, "authorization"))
    client = keys.remembered(token) or await keys.look_up(token)
    request.scope["expunge.client"] = client
    return client


def require(*scopes: str) -> Guard:
    """Dependency that gives the `Client` if its key holds one of the scopes.

    Raises:
        ValueError: an unknown scope.
    """
    if not scopes or set(scopes) - set(SCOPES):
        raise ValueError(f"Expected scopes among {', '.join(SCOPES)}, got {', '.join(scopes) or 'none'}.")
    return Guard(scopes)


def bearer_token(header: str | None) -> str:
    """Key in an `Authorization` header.

    Raises:
        NotAuthenticatedError: no header, or another kind of it.
    """
    kind, _, token = (header or "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise NotAuthenticatedError("Expected the header 'Authorization: Bearer <API key>'.")
    return token.strip()


class GuardedRoute(APIRoute):
    """Route that asks for the key before it reads a byte of the body, and reads no more than `MAX_BODY_BYTES`.

    A call that can be read in two ways is refused, see `service.ambiguity`. Answers are not to be kept by caches.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Handler of the route behind the checks."""
        inner = super().get_route_handler()
        guards = [each.call for each in self.dependant.dependencies if isinstance(each.call, Guard)]
        known, has_body = _parameters(self), self.body_field is not None

        async def handle(request: Request) -> Response:
            for guard in guards:
                await guard.admit(request)
            call = _Call(request)
            if guards:
                for name in SINGLE:
                    single_header(call.headers, name)
                refuse_repeated(call.query_params, known)
            if has_body:
                await call.read()
            response = await inner(call)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return handle


def _parameters(route: APIRoute) -> dict[str, bool]:
    """Parameters of a route's query, and whether each may be repeated."""
    found: dict[str, Any] = {}
    for each in route.dependant.query_params:
        kind = each.field_info.annotation
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
        found |= {name: field.annotation for name, field in fields.items()} or {each.alias: kind}
    return {name: get_origin(kind) is list for name, kind in found.items()}


class _Call(Request):
    """A request of which no more than `MAX_BODY_BYTES` are read, and whose JSON has one meaning.

    Raises:
        HTTPException: the body is declared to be larger.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request.scope, self._receive_some)
        self._inner, self._n_received = request.receive, 0
        self._content: Any = None
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            raise _too_large()

    async def _receive_some(self) -> Any:
        message = await self._inner()
        self._n_received += len(message.get("body", b""))
        if self._n_received > MAX_BODY_BYTES:
            raise _too_large()
        return message

    async def read(self) -> None:
        """Read the body; what is not declared as JSON is left to the route, which refuses it.

        Raises:
            HTTPException: too large, or not to be read.
            RequestValidationError: not well-formed, or with two meanings.
        """
        if is_json(self.headers.get("content-type", "")) and (content := await self.body()):
            self._content = read_json(content, self.headers)

    async def json(self) -> Any:
        """What `read` found; FastAPI asks for it."""
        return self._content


def _too_large() -> HTTPException:
    return HTTPException(413, f"Expected a body of at most {MAX_BODY_BYTES} bytes; send fewer ids a call.")


def _new_token(key_id: str) -> str:
    return f"exp_{key_id}_{secrets.token_urlsafe(32)}"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _valid_row(engine: sa.Engine, token: str, now: datetime) -> ApiKey:
    """Row of a key that may be used: found by the id in it, then compared by digest in constant time."""
    prefix, _, rest = token.partition("_")
    key_id, _, secret = rest.partition("_")
    if prefix == "exp" and secret and fit_id(key_id):
        with reading(engine) as s:
            row = s.get(ApiKey, key_id)
        if row is not None and _is_secret_of(row, _digest(token), now) and _is_valid(row, now):
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
