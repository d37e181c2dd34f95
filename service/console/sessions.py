"""Who is at the console: signed in with an API key, until they sign out, the key ends or a working day is over.

The cookie says whose key it was, until when, and is sealed with a secret of the service and the key's own hash: it
outlives a restart of the worker and ends with the key. It is HttpOnly and SameSite=Strict. Another port of the same
machine is the same *site*, so a call that changes something must also come from the same *origin* and carry the token
that only this session's pages hold. HTTP Basic (any user name, the key as password) lets scripts read; it changes
nothing, for a browser would send it along by itself.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Depends, Form, Request, Response
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from service.context import Context
from service.errors import NotAllowedError, NotAuthenticatedError
from service.http.ambiguity import single_header
from service.http.prefix import root_of
from service.keys import api_keys
from service.keys.api_keys import Client
from service.store.engine import fit_id

COOKIE: Final = "expunge_console"
LASTS: Final = timedelta(hours=10)
MAY_ENTER: Final = (api_keys.READ, api_keys.AUDIT, api_keys.ADMIN)

basic = HTTPBasic(auto_error=False)


@dataclass(frozen=True)
class Visitor:
    """Who asks for a page; `token` goes into the forms of the session's pages (empty: no session)."""

    client: Client
    token: str = field(default="", repr=False)

    @property
    def files(self) -> bool:
        """Whether they may file and cancel requests here."""
        return bool(self.token) and api_keys.WRITE in self.client.scopes

    @property
    def decides(self) -> bool:
        """Whether they may extend, approve, reject and roll back here."""
        return bool(self.token) and api_keys.ADMIN in self.client.scopes


class Sessions:
    """Cookies of one service: made, read, ended."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._secret = hmac.digest(context.keyring.tombstone_key, b"expunge console session", "sha256")
        self._ended: dict[str, datetime] = {}  # cookies signed out before their time, until that time
        self._lock = Lock()

    def begin(self, key: str, request: Request, response: Response) -> None:
        """Sign in with an API key.

        Raises:
            NotAuthenticatedError: not a valid key.
            NotAllowedError: a key that may not see any page.
        """
        now = self._context.now()
        client = api_keys.authenticate(self._context.engine, key, now=now).demand(*MAY_ENTER)
        _, key_sha256 = api_keys.holder(self._context.engine, client.id, now=now)
        content = f"{client.id}.{int((now + LASTS).timestamp())}.{secrets.token_urlsafe(12)}"
        cookie = f"{content}.{self._seal(content, key_sha256)}"
        response.set_cookie(
            COOKIE, cookie, max_age=int(LASTS.total_seconds()), httponly=True, samesite="strict",
            secure=request.url.scheme == "https", path=root_of(request) or "/",
        )  # fmt: skip

    def end(self, request: Request, response: Response) -> None:
        """Sign out: the cookie is worth nothing from here on, wherever a copy of it lies, until the worker restarts."""
        cookie, now = request.cookies.get(COOKIE, ""), self._context.now()
        with self._lock:
            self._ended = {each: until for each, until in self._ended.items() if until > now}
            self._ended[_sha256(cookie)] = now + LASTS
        response.delete_cookie(COOKIE, httponly=True, samesite="strict", path=root_of(request) or "/")

    def visitor(self, request: Request, basic: HTTPBasicCredentials | None) -> Visitor:
        """Who sent the request.

        Raises:
            NotAuthenticatedError: nobody, or one whose session or key is over.
            NotAllowedError: a key that may not see any page.
        """
        cookie = request.cookies.get(COOKIE)
        if cookie is not None:
            return Visitor(self._holder(cookie).demand(*MAY_ENTER), self._form_token(cookie))
        key = basic.password if basic else ""
        return Visitor(api_keys.authenticate(self._context.engine, key, now=self._context.now()).demand(*MAY_ENTER))

    def check_form(self, request: Request, visitor: Visitor, token: str) -> None:
        """Refuse a form that was not sent from a page of this session.

        Raises:
            NotAllowedError: from another origin, or without the session's token.
        """
        refuse_other_origins(request)
        if not visitor.token or not hmac.compare_digest(visitor.token.encode(), token.encode()):
            raise NotAllowedError("Expected a form of this session; reload the page and send it again.")

    def _holder(self, cookie: str) -> Client:
        now = self._context.now()
        content, _, seal = cookie.rpartition(".")
        key_id, until = [*content.split("."), "", ""][:2]
        over = NotAuthenticatedError("Your session is over; sign in again.")
        if not fit_id(key_id) or not until.isdigit() or len(until) > 11 or _sha256(cookie) in self._ended:
            raise over
        client, key_sha256 = api_keys.holder(self._context.engine, key_id, now=now)
        genuine = hmac.compare_digest(seal.encode(), self._seal(content, key_sha256).encode())
        if not genuine or datetime.fromtimestamp(int(until), UTC) <= now:
            raise over
        return client

    def _seal(self, content: str, key_sha256: str) -> str:
        return hmac.new(self._secret, f"{content} {key_sha256}".encode(), hashlib.sha256).hexdigest()

    def _form_token(self, cookie: str) -> str:
        return hmac.new(self._secret, b"form " + cookie.encode(), hashlib.sha256).hexdigest()


def refuse_other_origins(request: Request) -> None:
    """Let a call that changes something through only from a page of this very listener.

    Browsers say where a request came from in `Sec-Fetch-Site` (over https and on this machine) and in `Origin`.

    Raises:
        NotAllowedError: from elsewhere, or from nowhere said.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin", "")
    same = urlsplit(origin).netloc == request.headers.get("host")
    if not (same and origin) or site not in (None, "same-origin"):
        raise NotAllowedError("Expected a form sent from the console's own page; open the console and send it there.")


def visitor_of(request: Request, credentials: Annotated[HTTPBasicCredentials | None, Depends(basic)] = None) -> Visitor:
    """Dependency: who asks. The `Sessions` lie in `app.state.sessions`."""
    single_header(request.headers, "authorization")
    sessions: Sessions = request.app.state.sessions
    return sessions.visitor(request, credentials)


def sender_of(
    request: Request, visitor: Annotated[Visitor, Depends(visitor_of)], token: Annotated[str, Form()] = ""
) -> Visitor:
    """Dependency: who sent a form, which must come from a page of their session."""
    sessions: Sessions = request.app.state.sessions
    sessions.check_form(request, visitor, token)
    return visitor


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
