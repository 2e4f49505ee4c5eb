"""What is answered to a request that cannot be taken: problem details, by RFC 9457."""

from __future__ import annotations

import http
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_LOG = logging.getLogger(__name__)


class Problem(Exception):
    """A request that is refused.

    Args:
        status: The HTTP status.
        detail: What is wrong and what to change; never with a secret in it.
        errors: What is wrong in an event, as pydantic tells it.
        headers: Of the answer, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[Any] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})


def told(problem: Problem) -> Response:
    """The answer."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": http.HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.errors:
        body["errors"] = problem.errors
    return JSONResponse(body, problem.status, problem.headers, media_type="application/problem+json")


async def refused(request: Request, error: Exception) -> Response:
    """For a `Problem`."""
    assert isinstance(error, Problem)
    return told(error)


async def unroutable(request: Request, error: Exception) -> Response:
    """For what the framework refuses: no such path, no such method."""
    assert isinstance(error, HTTPException)
    return told(
        Problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}", headers=error.headers)
    )


async def unexpected(request: Request, error: Exception) -> Response:
    """For a mistake of ours; the event may not have been stored."""
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return told(Problem(500, "the server failed; send it again with the same id"))
