"""Who may read `/metrics`: everybody, or whoever brings the token of `EXPUNGE_METRICS_TOKEN`.

It is not an API key, since what scrapes has nothing to do with the API, and is asked of both listeners.

Tested in `tests/service/serving/test_port.py`.
"""

from __future__ import annotations

import hmac

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response

from service.errors import NotAuthenticatedError
from service.http.ambiguity import single_header
from service.http.guard import bearer_token
from service.http.problems import problem_of, request_id_of


def refusal(request: Request, token: str) -> Response | None:
    """The answer to a scrape without the token; none if it has it, or if there is none."""
    if not token:
        return None
    try:
        given = bearer_token(single_header(request.headers, "authorization"))
    except (NotAuthenticatedError, RequestValidationError):
        given = ""
    if hmac.compare_digest(given.encode(), token.encode()):
        return None
    wanted = "Expected the header 'Authorization: Bearer …' with the token of EXPUNGE_METRICS_TOKEN."
    return problem_of(NotAuthenticatedError(wanted), request_id_of(request))
