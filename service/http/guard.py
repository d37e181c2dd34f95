"""Asking for the API key: who a call is from, before a byte of its body is read.

Tested in `tests/service/keys/test_api_keys.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
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
from starlette.exceptions import HTTPException

from service.errors import NotAuthenticatedError
from service.http.ambiguity import SINGLE, is_json, read_json, refuse_repeated, single_header
from service.keys.api_keys import SCOPES, Client, digest_of, find_holder

REMEMBER_SECONDS: Final = 1.0  # a revoked key works no longer than this


MAX_BODY_BYTES: Final = 2 << 20  # 1,000 ids of 256 characters, escaped


bearer = HTTPBearer(
    auto_error=False, scheme_name="ApiKey", bearerFormat="exp_<id>_<random>", description="An API key of the service."
)


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

    While one look-up of a key is under way, whoever comes with the same key waits for that one. `cachetools.TTLCache`
    would not do: it counts from the insertion, which is after the read, and a clock set back would make entries fresh.
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
        found = self._known.get(digest_of(token))
        return found.client_at(self._now()) if found is not None else None

    async def look_up(self, token: str) -> Client:
        """`authenticate` in another thread, once for all who ask at the same time.

        Raises:
            NotAuthenticatedError: unknown, expired or revoked.
        """
        digest = digest_of(token)
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
        known = _Known(now, *find_holder(self._engine, token, now=now))
        with self._lock:
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[digest_of(token)] = known
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

    A call that can be read in two ways is refused, see `service.http.ambiguity`. Answers are not to be kept by caches.
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
