"""The HTTP client of a tool in a worker: redirects only to allowed hosts, answers of bounded length."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from beam_agents.errors import NotCalled
from beam_agents.toolkit.kept import Kept
from beam_agents.toolkit.url_template import origin_of

_CONNECT_SECONDS = 10.0
_REDIRECTS = 3


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes
    cut: bool
    """Whether the body is longer than allowed; `body` is its beginning then."""

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode("utf-8", "replace")

    @property
    def title(self) -> str:
        """The status with its meaning."""
        known = self.status in HTTPStatus._value2member_map_
        return f"status {self.status} ({HTTPStatus(self.status).phrase})" if known else f"status {self.status}"


class HttpClient:
    """Sends requests.

    Args:
        allow_hosts: Where a GET may be redirected besides its own origin: `host` or `host:port`.
        max_bytes: The longest body that is read.
        fresh: Whether each request gets a connection of its own, and no redirect is followed. On one that was kept
            open nobody can know whether a request was received when it breaks, and the library would send some again.
    """

    def __init__(self, *, allow_hosts: tuple[str, ...], max_bytes: int, fresh: bool) -> None:
        self._allow_hosts = frozenset(host.lower() for host in allow_hosts)
        self._max_bytes = max_bytes
        self._fresh = fresh
        self._kept = Kept(partial(_session, fresh))

    async def send(
        self, method: str, url: str, *, headers: Mapping[str, str], secret: frozenset[str], json: bytes | None = None
    ) -> Answer:
        """Sends one request, follows a GET's redirects unless `fresh`, and reads the answer.

        Args:
            method: The method.
            url: The URL, encoded.
            headers: The headers.
            secret: Those that no other origin may see.
            json: The body.

        Raises:
            NotCalled: It is redirected to where it must not go.
            aiohttp.ClientError, OSError: The connection failed.
        """
        origin, sent = origin_of(url), dict(headers)
        if json is not None:
            sent["Content-Type"] = "application/json"
        async with self._kept.use() as session:
            for _ in range(_REDIRECTS + 1):
                async with session.request(
                    method, URL(url, encoded=True), headers=sent, data=json, allow_redirects=False
                ) as response:
                    followed = method == "GET" and not self._fresh
                    if not followed or response.status not in (301, 302, 303, 307, 308):
                        return await self._read(response)
                    url = self._redirected(url, response.headers.get("Location", ""))
                if origin_of(url) != origin:
                    sent = {name: value for name, value in sent.items() if name not in secret}
        raise NotCalled(f"it was redirected more than {_REDIRECTS} times")

    def _redirected(self, url: str, location: str) -> str:
        # Only hosts are named in errors: the rest of a URL may hold what its server keeps secret.
        try:
            target = urljoin(url, location)
            scheme, host, port = origin_of(target)
        except ValueError:
            raise NotCalled("it was redirected to something that is no URL of HTTP") from None
        if urlsplit(target).username is not None or (scheme == "http" and url.startswith("https:")):
            raise NotCalled(f"it was redirected to {host!r} with a user in the URL, or without TLS")
        default = port == (443 if scheme == "https" else 80)
        if (scheme, host, port) != origin_of(url) and not (
            f"{host}:{port}" in self._allow_hosts or (default and host in self._allow_hosts)
        ):
            raise NotCalled(f"it was redirected to {f'{host}:{port}'!r}, which is not in allow_hosts")
        return str(URL(target))

    async def _read(self, response: aiohttp.ClientResponse) -> Answer:
        body = bytearray()
        async for chunk in response.content.iter_chunked(65_536):
            body += chunk
            if len(body) > self._max_bytes:
                response.close()
                return Answer(response.status, response.headers, bytes(body[: self._max_bytes]), True)
        return Answer(response.status, response.headers, bytes(body), False)


@asynccontextmanager
async def _session(fresh: bool) -> AsyncIterator[Any]:
    connector = aiohttp.TCPConnector(limit=0, force_close=fresh)  # the tool's in_flight and time-out bound it
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),  # what a server tells one run is not for the others
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
    ) as session:
        yield session
