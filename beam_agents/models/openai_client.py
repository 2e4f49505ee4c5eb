"""The HTTP client for chat servers, and what its errors mean.

This is the one module that imports the openai package, which takes a second: it is imported when a model connects. The
package says where a server is and what it is told in headers. The requests themselves go through aiohttp: what the
package does for each of them cost more than all the rest of a run's step.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
from openai import AsyncOpenAI

from beam_agents.errors import ModelError

_KEEPALIVE_SECONDS = 30.0
_RETRYABLE = frozenset({408, 409, 425, 429})
_LONGEST_MESSAGE = 500


class _JsonBody(aiohttp.payload.Payload):
    """A body that is let go of once it is sent: what it was made of stays with the run anyhow, and thousands of runs
    wait for their answers. A redirect, which sends it again, has it made again."""

    _autoclose = True

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body, content_type="application/json")
        self._made: bytes | None = _compact(body)
        self._size = len(self._made)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return (self._made or _compact(self._value)).decode(encoding, errors)

    async def write(self, writer: aiohttp.abc.AbstractStreamWriter) -> None:
        made, self._made = self._made or _compact(self._value), None
        await writer.write(made)


def _compact(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


class ChatClient:
    """A client of one chat server, on the event loop that uses it first."""

    def __init__(self, *, api_key: str, base_url: str | None, headers: Mapping[str, str]) -> None:
        self._api_key = api_key
        server = AsyncOpenAI(api_key=api_key, base_url=base_url, default_headers=headers)
        self._url = f"{str(server.base_url).rstrip('/')}/chat/completions"
        told = server.auth_headers | server.default_headers
        self._headers = {name: value for name, value in told.items() if isinstance(value, str)}
        # Once, and not by `trust_env`, which reads files in a thread at each request.
        self._proxy = _proxy_of(self._url)
        self._tls = httpx2.create_ssl_context() if self._url.startswith("https:") else True
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: dict[str, Any], *, seconds: float, name: str) -> bytes:
        """Sends one request and returns the body of the answer.

        Args:
            body: The body of `POST /chat/completions`.
            seconds: Time limit to connect, and between two pieces of the answer.
            name: The model's name, for errors.

        Raises:
            ModelError: There is no answer with status 200. Its message and its cause hold no secrets.
        """
        data = _JsonBody(body)
        timeout = aiohttp.ClientTimeout(total=None, connect=seconds, sock_read=seconds)
        try:
            async with self._connections().post(self._url, data=data, timeout=timeout, proxy=self._proxy) as response:
                answer = await response.read()
                if response.status < 400:
                    return answer
                failure = self._status_error(response, answer, name)
        except TimeoutError:
            failure = ModelError(f"model {name!r}: no answer within {seconds:g} seconds", retryable=True)
        except (aiohttp.ClientError, OSError) as error:
            why = self._clean(str(error)) or type(error).__name__
            failure = ModelError(f"model {name!r}: the connection failed: {why}", retryable=True)
        raise failure  # outside of the handlers: the client's own errors may quote the key

    async def close(self) -> None:
        """Closes the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            # The worker's limits bound the requests in flight, so there is none here.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS, ssl=self._tls)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self._session

    def _status_error(self, response: aiohttp.ClientResponse, answer: bytes, name: str) -> ModelError:
        status, headers = response.status, response.headers
        told, code = _told(answer)
        asked_not_to = headers.get("x-should-retry") == "false" or code == "insufficient_quota"
        return ModelError(
            f"model {name!r}: status {status}: {self._clean(told or response.reason or 'no reason')}",
            retryable=(status in _RETRYABLE or status >= 500) and not asked_not_to,
            retry_after=retry_after(headers, now=time.time()),
            status=status,
        )

    def _clean(self, text: str) -> str:
        return re.sub(r"\s+", " ", text.replace(self._api_key, "***")).strip()[:_LONGEST_MESSAGE]


def _proxy_of(url: str) -> str | None:
    """The proxy that the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`) names for a URL."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _told(answer: bytes) -> tuple[str, Any]:
    """What the body of an error says, and its code."""
    try:
        body = json.loads(answer)
    except ValueError:
        return answer.decode(errors="replace"), None
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return error if isinstance(error, str) else json.dumps(error), None
    message = error.get("message") or error.get("detail")
    return message if isinstance(message, str) else json.dumps(error), error.get("code")


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
