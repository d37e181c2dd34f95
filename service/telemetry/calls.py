"""What may be said of a call in a log line or a trace. Tested in `tests/service/telemetry/test_logs.py`."""

from __future__ import annotations

from starlette.types import Scope


def erasures_of(scope: Scope, status: int) -> dict[str, list[str]]:
    """Numbers of the erasure requests that a call filed or was about, if it was.

    A path that no request has is not told: it may name a person.
    """
    filed = scope.get("expunge.erasure_ids")
    found = scope.get("path_params", {}).get("request_id")
    ids = filed or ([found] if found and status < 400 else [])
    return {"erasure_ids": list(ids)} if ids else {}


def route_template(scope: Scope) -> str:
    """Template of the route that answered, `/erasure-requests/{request_id}`; `unmatched` if none did."""
    return getattr(scope.get("route"), "path", None) or "unmatched"
