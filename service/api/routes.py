"""Routes of the request API, without logic: who may call what, and which function answers.

The app is made to be mounted (at `/v1`): its routes are relative, and `Location` carries the prefix it was mounted
under. A user id never stands in a path or a query.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import anyio.to_thread
from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse

from service import __version__
from service.api import models, proofs
from service.api.schemas import CertificateFile, LogEntries, LogProof, Models, PublicKeys, Rollback, Rollbacks
from service.context import Context
from service.http.guard import GuardedRoute, KnownKeys, require
from service.http.prefix import root_of
from service.http.problems import MEDIA_TYPE, add_problem_handlers
from service.http.request_log import OnAnswer, RequestLog
from service.keys.api_keys import ADMIN, AUDIT, PREDICT, READ, WRITE, Client
from service.models import rollbacks
from service.requests import decisions, intake, views
from service.requests.schemas import (
    BatchDecided,
    Decision,
    Extension,
    Filed,
    Filing,
    Problem,
    Rejection,
    RequestDetail,
    RequestPage,
)

THREADS: Final = 8  # for database work in one process; the inference thread needs the cores
LARGEST: Final = 10**12  # index of a log entry

OF_A_REQUEST: Final = (
    "read_request", "cancel_request", "extend_request", "approve_request", "reject_request", "read_request_certificate",
)  # fmt: skip

Writer = Annotated[Client, Depends(require(WRITE))]
Reader = Annotated[Client, Depends(require(READ, AUDIT, ADMIN))]
Auditor = Annotated[Client, Depends(require(AUDIT, ADMIN))]
Admin = Annotated[Client, Depends(require(ADMIN))]
Insider = Annotated[Client, Depends(require(PREDICT, AUDIT, ADMIN))]
TreeSize = Annotated[int | None, Query(ge=0, le=LARGEST, description="Default: all entries.")]

_DESCRIPTION = """\
File erasure requests, follow their state, and fetch their certificates.

Send `Authorization: Bearer <API key>`. Every error is `application/problem+json` (RFC 9457). Calls that file requests
take an `Idempotency-Key`: the same key and body give the same answer, so a call may be repeated until it is answered.

A call that could be read in two ways is refused with 422 and nothing is stored: a name twice in an object of the body,
a header in two lines, a parameter twice or one that the route does not have, JSON that is not UTF-8 or begins with a
byte order mark, a `Content-Encoding`.
"""

_PROBLEMS: Final = {
    400: "The body cannot be read",
    401: "No key, or one that is unknown, expired or revoked",
    403: "The key lacks the scope, or the resource is another client's",
    404: "No such resource among those the client may see",
    409: "The state does not allow it",
    413: "The body is too large",
    415: "Not a media type that is accepted",
    422: "The input does not fit; nothing was stored",
    429: "Too many open requests of this client",
    500: "The service failed",
    503: "Not at the moment",
}


class Api(FastAPI):
    """FastAPI whose OpenAPI document describes the error shape."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        document = super().openapi()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in schemas:
            shape = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(shape.pop("$defs"))
            schemas["Problem"] = shape
        return document


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of a route's errors, those that every guarded route can give included."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    text = {"schema": {"type": "string"}}
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({401, 403, 422, 500, 503, *statuses}):
        found[status] = {"description": _PROBLEMS[status], "content": content}
        if status in (401, 403):
            found[status]["headers"] = {"WWW-Authenticate": text}
        if status in (429, 503):
            found[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return found


def links(parameter: str, pointer: str, *operations: str) -> dict[str, dict[str, Any]]:
    """OpenAPI links: what can be called next, with a value of the answer as its parameter."""
    return {name: {"operationId": name, "parameters": {parameter: f"$response.body#{pointer}"}} for name in operations}


def create_api(context: Context, *, n_subjects: Callable[[], int], on_answer: OnAnswer = lambda *_: None) -> FastAPI:
    """The request API over one database.

    Args:
        context: settings, database, keys, clock and ids.
        n_subjects: how many people the service holds data of; asked when a call names several.
        on_answer: told of each call; see `RequestLog`.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield

    app = Api(
        title="Expunge", version=__version__, description=_DESCRIPTION, lifespan=lifespan, docs_url=None,
        redoc_url=None, redirect_slashes=False, generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    app.router.route_class = GuardedRoute
    app.state.keys = KnownKeys(context.engine, context.now)
    app.add_middleware(RequestLog, new_id=context.new_id, on_answer=on_answer)
    add_problem_handlers(app)
    _add_requests(app, context, n_subjects)
    _add_decisions(app, context)
    _add_proofs(app, context)
    _add_models(app, context)
    return app


def _add_requests(app: FastAPI, context: Context, n_subjects: Callable[[], int]) -> None:
    location = {"Location": {"schema": {"type": "string"}, "description": "The request, or the batch's requests."}}
    accepted: dict[int | str, dict[str, Any]] = {
        202: {
            "description": "Accepted and stored",
            "headers": location,
            "links": links("request_id", "/requests/0/id", *OF_A_REQUEST)
            | links("batch_id", "/batch_id", "list_requests", "approve_batch", "reject_batch"),
        }
    }
    page: dict[int | str, dict[str, Any]] = {200: {"links": links("request_id", "/requests/0/id", *OF_A_REQUEST)}}
    detail: dict[int | str, dict[str, Any]] = {
        200: {"links": links("certificate_id", "/certificate_id", "read_certificate")}
    }

    @app.post(
        "/erasure-requests", status_code=202, tags=["requests"], responses=accepted | problems(400, 413, 429)
    )  # fmt: skip
    def file_requests(
        filing: Filing,
        client: Writer,
        request: Request,
        response: Response,
        idempotency_key: Annotated[
            str | None,
            Header(
                description="1 to 255 visible ASCII characters without a comma, one for each call that is meant once."
            ),
        ] = None,
    ) -> Filed:
        """Ask for the erasure of 1 to 1,000 people: all are accepted, or none.

        Answers after the requests are stored. `Location` is the request of the one person, or the list of the batch.
        Receipts come in the order of `user_ids`; no answer ever repeats the ids.
        """
        filed = intake.file_requests(
            context,
            client,
            filing,
            n_subjects=n_subjects,
            most_open=context.settings.most_open_requests,
            idempotency_key=idempotency_key,
        )
        request.scope["expunge.erasure_ids"] = [receipt.id for receipt in filed.requests]  # for the line of the log
        response.headers["Location"] = _location(app, request, filed)
        return filed

    @app.get("/erasure-requests", tags=["requests"], responses=page | problems())
    def list_requests(client: Reader, wanted: Annotated[views.RequestFilter, Query()]) -> RequestPage:
        """Requests of the client, newest first; with `audit:read` or `admin` those of all clients."""
        return views.request_page(context, client, wanted)

    @app.get("/erasure-requests/{request_id}", tags=["requests"], responses=detail | problems(404))
    def read_request(client: Reader, request_id: str) -> RequestDetail:
        """The state of a request, and its history."""
        return views.request_detail(context, client, request_id)

    @app.delete("/erasure-requests/{request_id}", tags=["requests"], responses=problems(404, 409))
    def cancel_request(client: Writer, request_id: str) -> RequestDetail:
        """Cancel a request of one's own while its hold window is open and no run has claimed it."""
        return decisions.cancel(context, client, request_id)

    @app.get("/erasure-requests/{request_id}/certificate", tags=["certificates"], responses=problems(404))
    def read_request_certificate(client: Reader, request_id: str) -> CertificateFile:
        """The certificate of a completed request."""
        return CertificateFile.model_validate(proofs.request_certificate(context, client, request_id))


def _add_decisions(app: FastAPI, context: Context) -> None:
    errors = problems(400, 404, 409, 413)

    @app.post("/erasure-requests/{request_id}/extend", tags=["decisions"], responses=errors)
    def extend_request(client: Admin, request_id: str, extension: Extension) -> RequestDetail:
        """Extend the deadline to three months after receipt; once, and before it has passed."""
        return decisions.extend(context, client, request_id, extension)

    @app.post("/erasure-requests/{request_id}/approve", tags=["decisions"], responses=errors)
    def approve_request(client: Admin, request_id: str, decision: Decision) -> RequestDetail:
        """Let a request that needs attention go back to the queue; a legal hold is lifted."""
        return decisions.approve(context, client, request_id, decision)

    @app.post("/erasure-requests/{request_id}/reject", tags=["decisions"], responses=errors)
    def reject_request(client: Admin, request_id: str, rejection: Rejection) -> RequestDetail:
        """Refuse a request on a legal ground, while nothing was erased yet."""
        return decisions.reject(context, client, request_id, rejection)

    @app.post("/erasure-batches/{batch_id}/approve", tags=["decisions"], responses=errors)
    def approve_batch(client: Admin, batch_id: str, decision: Decision) -> BatchDecided:
        """Approve the requests of a batch that wait because of a mass deletion."""
        return decisions.approve_batch(context, client, batch_id, decision)

    @app.post("/erasure-batches/{batch_id}/reject", tags=["decisions"], responses=errors)
    def reject_batch(client: Admin, batch_id: str, rejection: Rejection) -> BatchDecided:
        """Reject what is held of a mass deletion."""
        return decisions.reject_batch(context, client, batch_id, rejection)


def _add_proofs(app: FastAPI, context: Context) -> None:
    @app.get("/certificates/{certificate_id}", tags=["certificates"], responses=problems(404))
    def read_certificate(client: Reader, certificate_id: str) -> CertificateFile:
        """A certificate of the client's requests; with `audit:read` or `admin` any, those of failed audits too."""
        return CertificateFile.model_validate(proofs.certificate_file(context, client, certificate_id))

    @app.get("/keys", tags=["certificates"])
    def read_public_keys() -> PublicKeys:
        """Keys that certificates and checkpoints verify with. Needs no API key."""
        return proofs.public_keys(context)

    signed_note: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/log/checkpoint", tags=["log"], response_class=PlainTextResponse, responses=signed_note | problems())
    def read_checkpoint(client: Reader) -> str:
        """Signed head of the log (c2sp.org/tlog-checkpoint)."""
        return proofs.checkpoint(context)

    @app.get("/log/inclusion", tags=["log"], responses=problems())
    def prove_inclusion(
        client: Reader, index: Annotated[int, Query(ge=0, le=LARGEST)], tree_size: TreeSize = None
    ) -> LogProof:
        """Proof that an entry is in the log (RFC 6962, 2.1.1)."""
        return proofs.inclusion(context, index, tree_size)

    @app.get("/log/consistency", tags=["log"], responses=problems())
    def prove_consistency(
        client: Reader, first_size: Annotated[int, Query(ge=0, le=LARGEST)], second_size: TreeSize = None
    ) -> LogProof:
        """Proof that the log only grew (RFC 6962, 2.1.2)."""
        return proofs.consistency(context, first_size, second_size)

    entries: dict[int | str, dict[str, Any]] = {200: {"links": links("index", "/entries/0/index", "prove_inclusion")}}

    @app.get("/log/entries", tags=["log"], responses=entries | problems())
    def list_log_entries(
        client: Auditor,
        start: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> LogEntries:
        """Entries in order: policies bound before runs, audits, certificates."""
        return proofs.log_entries(context, start, limit)


def _add_models(app: FastAPI, context: Context) -> None:
    place = {"Location": {"schema": {"type": "string"}, "description": "The rollback."}}
    ordered: dict[int | str, dict[str, Any]] = {
        202: {
            "description": "Written down; the worker carries it out between two runs",
            "headers": place,
            "links": links("rollback_id", "/id", "read_rollback"),
        }
    }
    found: dict[int | str, dict[str, Any]] = {200: {"links": links("digest", "/models/0/digest", "order_rollback")}}

    @app.get("/models", tags=["models"], responses=found | problems())
    def list_models(client: Insider) -> Models:
        """Model versions, what is in service, and which processes have acknowledged it."""
        return models.models(context)

    @app.post(
        "/models/{digest}/rollback", status_code=202, tags=["models"], responses=ordered | problems(400, 404, 409, 413)
    )
    def order_rollback(
        client: Admin, digest: str, decision: Decision, request: Request, response: Response
    ) -> Rollback:
        """Go back to an older version, if erasure allows: its weights exist and nobody was erased since.

        Never to weights that were destroyed, nor below `oldest_allowed_generation`. The same order while it is open
        gives the same answer.
        """
        placed = rollbacks.order(context, client, digest, decision.reason)
        path = app.url_path_for("read_rollback", rollback_id=placed.id)
        response.headers["Location"] = root_of(request) + path
        return Rollback.model_validate(placed.model_dump())

    @app.get("/rollbacks", tags=["models"], responses=problems())
    def list_rollbacks(client: Auditor, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> Rollbacks:
        """Orders to go back, newest first."""
        return models.rollback_list(context, limit)

    @app.get("/rollbacks/{rollback_id}", tags=["models"], responses=problems(404))
    def read_rollback(client: Auditor, rollback_id: str) -> Rollback:
        """How an order to go back ended, or that it waits for the worker."""
        return models.rollback(context, rollback_id)


def _location(app: FastAPI, request: Request, filed: Filed) -> str:
    prefix = root_of(request)
    if len(filed.requests) == 1:
        return prefix + app.url_path_for("read_request", request_id=filed.requests[0].id)
    return f"{prefix}{app.url_path_for('list_requests')}?batch_id={filed.batch_id}"
