"""Audit reports, drawings and certificates: to open, to keep, and to verify here and now."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from audit.proof import certificate as certificates
from audit.proof.envelope import read_public_keys
from service.api import proofs
from service.console import comparisons, queries
from service.console.rendering import Pages
from service.console.sessions import Visitor, visitor_of
from service.context import Context
from service.errors import NotFoundError
from service.keys import api_keys
from service.models import registry
from service.store.engine import fit_id, reading
from service.store.tables import Run

At = Annotated[Visitor, Depends(visitor_of)]


def add_proofs(router: APIRouter, context: Context, pages: Pages) -> None:
    """The routes."""

    @router.get("/runs/{run_id}/reports/{step}")
    def report(visitor: At, run_id: str, step: int) -> Response:
        visitor.client.demand(api_keys.AUDIT, api_keys.ADMIN)
        with reading(context.engine) as s:  # also keeps anything but a known run's number out of the path
            if not fit_id(run_id) or s.get(Run, run_id) is None:
                raise NotFoundError("There is no run with this number.")
        path = context.settings.reports_folder / run_id / f"step-{step}.html"
        if not path.exists():
            raise NotFoundError("There is no report of this attempt: not yet, or no longer.")
        return standalone(path.read_text(encoding="utf-8"))

    @router.get("/certificates/{certificate_id}")
    def certificate(visitor: At, certificate_id: str) -> Response:
        content = proofs.certificate_file(context, visitor.client, certificate_id)
        headers = {"Content-Disposition": f'attachment; filename="certificate-{certificate_id[:8]}.json"'}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        return Response(text, media_type="application/json", headers=headers)

    @router.get("/certificates/{certificate_id}/verification")
    def verification(request: Request, visitor: At, certificate_id: str) -> Response:
        content = proofs.certificate_file(context, visitor.client, certificate_id)
        found = verify(context, content)
        with reading(context.engine) as s:
            record = queries.certificate(s, certificate_id)
        return pages.page(
            request, visitor, "verification.html", found=found, record=record, at=context.now(),
            statement=found.statement, predicate=(found.statement or {}).get("predicate"),
        )  # fmt: skip

    @router.get("/methods/comparison/{name}")
    def drawing(visitor: At, name: str) -> Response:
        visitor.client.demand(api_keys.AUDIT, api_keys.ADMIN)
        comparison = comparisons.latest(context.settings)
        text = comparison.read(name) if comparison else None
        if text is None:
            raise NotFoundError("There is no such drawing.")
        return standalone(text, media_type="image/svg+xml")


def verify(context: Context, content: dict[str, Any]) -> certificates.Verification:
    """Check a certificate against this service's keys, its whole log as it is now, and the weights if they are here."""
    published = proofs.public_keys(context).keys
    trusted: dict[str, Any] = {
        "public_key": read_public_keys("".join(key.pem for key in published)),
        "retired_at": {key.key_id: key.valid_until for key in published if key.valid_until},
    }
    with reading(context.engine) as s:
        entries = queries.log_entries(s)
    found = certificates.verify(content, log_leaves=entries, **trusted)
    weights = found.statement["subject"][0]["digest"]["sha256"] if found.valid and found.statement else None
    if weights is None or not registry.path(context.settings, weights).exists():
        return found
    path = registry.path(context.settings, weights)
    found = certificates.verify(content, log_leaves=entries, weights_path=path, **trusted)
    checks = (replace(check, sentence=check.sentence.replace(str(path), path.name)) for check in found.checks)
    return replace(found, checks=tuple(checks))  # where the disk keeps its files is not the page's to tell


def standalone(text: str, *, media_type: str = "text/html") -> Response:
    """A report or a drawing as it was written: it may use the style it carries, and load nothing at all."""
    styles = [
        b64encode(sha256(each.encode()).digest()).decode() for each in re.findall(r"<style>(.*?)</style>", text, re.S)
    ]
    allowed = " ".join(f"'sha256-{each}'" for each in styles) or "'none'"
    policy = f"default-src 'none'; style-src {allowed}; img-src data:; base-uri 'none'; form-action 'none'"
    policy += "; frame-ancestors 'none'"
    return Response(text, media_type=media_type, headers={"Content-Security-Policy": policy})
