"""The HTTP client for chat servers, and what its errors mean.

This is the one module that imports the openai package, which takes a second: it is imported when a model connects.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import httpx2
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, DefaultAioHttpClient

from beam_agents.errors import ModelError

# The worker's limits bound the requests in flight, so this only has to be higher; None would mean aiohttp's own 100.
_CONNECTIONS = httpx2.Limits(max_connections=1_000_000, keepalive_expiry=30.0)
_RETRYABLE = frozenset({408, 409, 425, 429})
_LONGEST_MESSAGE = 500


class ChatClient:
    """A client of one chat server, on the event loop that uses it first."""

    def __init__(self, *, api_key: str, base_url: str | None, headers: Mapping[str, str]) -> None:
        self._api_key = api_key
        self._client = AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            default_headers=headers,
            max_retries=0,
            http_client=DefaultAioHttpClient(limits=_CONNECTIONS),
        )

    async def post(self, body: dict[str, Any], *, seconds: float, name: str) -> bytes:
        """Sends one request and returns the body of the answer.

        `post` and not `chat.completions.create`, which walks through the whole transcript in Python at every step.

        Args:
            body: The body of `POST /chat/completions`.
            seconds: Time limit to connect, and between two pieces of the answer.
            name: The model's name, for errors.

        Raises:
            ModelError: There is no answer with status 200. Its message and its cause hold no secrets.
        """
        try:
            response = await self._client.post(
                "/chat/completions", body=body, cast_to=httpx2.Response, options={"timeout": seconds}
            )
        except APIStatusError as error:
            failure = self._status_error(error, name)
        except APITimeoutError:
            # The client says so of connections that were lost, too.
            failure = ModelError(f"model {name!r}: no answer in time, or the connection was lost", retryable=True)
        except (APIConnectionError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            failure = ModelError(
                f"model {name!r}: the connection failed: {self._clean(str(error.__cause__ or error))}", retryable=True
            )
        else:
            return response.content
        raise failure  # outside of the handlers: the client's own errors may quote the key

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _status_error(self, error: APIStatusError, name: str) -> ModelError:
        status, headers = error.status_code, error.response.headers
        asked_not_to = headers.get("x-should-retry") == "false" or error.code == "insufficient_quota"
        return ModelError(
            f"model {name!r}: status {status}: {self._clean(_told(error))}",
            retryable=(status in _RETRYABLE or status >= 500) and not asked_not_to,
            retry_after=retry_after(headers, now=time.time()),
            status=status,
        )

    def _clean(self, text: str) -> str:
        return re.sub(r"\s+", " ", text.replace(self._api_key, "***")).strip()[:_LONGEST_MESSAGE]


def _told(error: APIStatusError) -> str:
    body = error.body
    if isinstance(body, dict):
        message = body.get("message") or body.get("detail") or body.get("error")
        return message if isinstance(message, str) else json.dumps(body)
    return str(body) if body else error.response.reason_phrase


def retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Seconds that a server asks to wait, from `retry-after-ms` or `Retry-After` (seconds or an HTTP date).

    Args:
        headers: The response's headers, their names in lower case or case-insensitive.
        now: Seconds since 1970.
    """
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[header]) * unit
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - now)
    except (KeyError, ValueError):
        return None
