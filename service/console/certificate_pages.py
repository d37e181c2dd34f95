"""The certificate of a request as a sheet for the person who asked: in words, in their language, to print."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from markupsafe import Markup

from service.api import proofs
from service.console.languages import LANGUAGES, Language, choose
from service.console.proofs import verify
from service.console.rendering import Pages
from service.console.sessions import Visitor, visitor_of
from service.context import Context
from service.requests.views import visible
from service.store.engine import reading
from service.store.tables import ErasureRequest
from unlearning.methods import METHODS

At = Annotated[Visitor, Depends(visitor_of)]


def add_certificate_pages(router: APIRouter, context: Context, pages: Pages) -> None:
    """The route. The page belongs to a request: others of the same person share the certificate."""

    @router.get("/requests/{request_id}/certificate")
    def certificate(request: Request, visitor: At, request_id: str, lang: str = "") -> Response:
        content = proofs.request_certificate(context, visitor.client, request_id)
        with reading(context.engine) as s:
            row = visible(s, visitor.client, request_id)
        found, language = verify(context, content), choose(lang, request.headers.get("accept-language", ""))
        shown: dict[str, Any] = {"t": language, "languages": LANGUAGES, "row": row, "found": found}
        if found.erased and found.statement is not None:
            predicate = found.statement["predicate"]
            shown |= {
                "predicate": predicate,
                "done": _done(language, row, predicate),
                "issued_at": datetime.fromisoformat(predicate["issued_at"]),
                "purged_at": datetime.fromisoformat(predicate["purge"]["finished_at"]),
                "checked": _checked(language, context.now()),
                "log_index": content["log"]["index"],
                "key_id": content["envelope"]["signatures"][0]["keyid"],
            }
        answer = pages.page(request, visitor, "certificate.html", **shown)
        answer.headers["Content-Language"] = language.code
        answer.headers["Vary"] = "Accept-Language"
        return answer


def _done(language: Language, row: ErasureRequest, predicate: dict[str, Any]) -> str:
    if row.outcome == "no_data_held":
        return str(language["nothing_held"])
    if predicate["verdict"] == "PASSED":
        method = predicate["procedure"]["method"]
        title = METHODS[method].title if method in METHODS else method
        return str(language["unlearned"]).format(method=language["methods"].get(title, title))
    return str(language["not_learned"])


def _checked(language: Language, at: datetime) -> Markup:
    moment = Markup('<time datetime="{}">{}</time>').format(at.isoformat(), language.moment(at))
    return Markup.escape(language["checked"]).format(moment=moment)
