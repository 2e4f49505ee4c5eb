"""Posting to a webhook: retries, signatures, and at most so many requests at once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import aiohttp

from beam_agents.codec import named
from beam_agents.engine.threads import in_thread
from beam_agents.engine.worker import this_worker
from beam_agents.errors import ConfigurationError
from beam_agents.models.openai_client import retry_after
from beam_agents.secrets import Secret, conceal, conceal_json, is_header_value, reveal

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0
_LATER = frozenset({408, 425, 429})
"""Statuses below 500 that are no verdict on the request."""
_READ_BYTES = 8_000
_SHOWN = 300
"""Characters of an answer that is no success."""
_ENCODED = "whsec_"


@dataclass(frozen=True)
class Target:
    """Where and how to post."""

    url: str | Secret
    headers: Mapping[str, str | Secret] = field(default_factory=dict)
    sign: Secret | None = None
    timeout: float = 10.0
    """Of one request, seconds."""
    give_up_after: float = 60.0
    """Seconds from the first attempt on."""
    in_flight: int = 32


class Refusal(NamedTuple):
    """Why something was not delivered."""

    message: str
    attempts: int
    status: int | None


class _Answer(NamedTuple):
    message: str
    """Empty if all is well."""
    status: int | None
    final: bool
    wait: float = 0.0
    """Seconds that the server asks for."""


class Client:
    """The connections of a process to a webhook; they live on the worker's loop."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._slots = asyncio.Semaphore(target.in_flight)
        self._session: aiohttp.ClientSession | None = None

    def deliver(self, body: bytes, id: str) -> Future[Refusal | None]:
        """Begins to deliver a body; the outcome is `None` when it was taken.

        Args:
            body: JSON.
            id: The same whenever this is sent again.
        """
        return asyncio.run_coroutine_threadsafe(self._deliver(body, id), this_worker().loop)

    def close(self) -> None:
        """Closes the connections."""
        session, self._session = self._session, None
        if session is not None and not this_worker().loop.is_closed():
            asyncio.run_coroutine_threadsafe(session.close(), this_worker().loop).result(5)

    async def _deliver(self, body: bytes, id: str) -> Refusal | None:
        until, attempts, pause = None, 0, _FIRST_PAUSE
        while True:
            async with self._slots:  # not while it waits for the next attempt
                until = until or time.monotonic() + self._target.give_up_after
                attempts += 1
                answer = await self._post(body, id)
            if not answer.message:
                return None
            wait = max(answer.wait, pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
            if answer.final or time.monotonic() + wait > until:
                return Refusal(answer.message, attempts, answer.status)
            await asyncio.sleep(wait)

    async def _post(self, body: bytes, id: str) -> _Answer:
        target = self._target
        try:
            secrets, url, headers = await in_thread(self._revealed)  # whoever keeps secrets may take his time
        except ConfigurationError as error:
            given = (target.url, target.sign, *target.headers.values())
            may_come = any(isinstance(value, Secret) and value.may_come for value in given)
            return _Answer(str(error), None, final=not may_come)
        try:
            headers |= {"Content-Type": "application/json", "Idempotency-Key": id}
            if target.sign is not None:
                headers |= signature(secrets[-1], id, int(time.time()), body)
            if wrong := [name for name, value in headers.items() if not is_header_value(value)]:
                raise ConfigurationError(
                    f"Webhook(headers=...): {', '.join(wrong)} has characters that a header cannot have, such as a "
                    "line break"
                )
        except ConfigurationError as error:
            return _Answer(str(error), None, final=True)
        try:
            if self._session is None:
                self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=target.in_flight))
            async with self._session.post(
                url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=target.timeout),
            ) as response:
                if 200 <= response.status < 300:
                    return _Answer("", response.status, final=True)
                # First cleaned and then cut: half of a secret is not recognised.
                said = conceal_json((await response.content.read(_READ_BYTES)).decode(errors="replace"), secrets)
                message = f"status {response.status}: {said[:_SHOWN]}"
                final = response.status < 500 and response.status not in _LATER
                wait = retry_after(response.headers, now=time.time()) or 0.0
                return _Answer(message, response.status, final, wait)
        except TimeoutError:
            return _Answer(f"no answer within {target.timeout:g} s; it may have arrived", None, final=False)
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            return _Answer(f"the URL is wrong: {type(error).__name__}", None, final=True)
        except (aiohttp.ClientConnectorError, aiohttp.ClientConnectorDNSError) as error:
            return _Answer(conceal(named(error), secrets), None, final=False)
        except aiohttp.ClientResponseError as error:  # it quotes the URL
            return _Answer(f"{type(error).__name__}; it may have arrived", None, final=False)
        except (aiohttp.ClientError, OSError) as error:
            return _Answer(conceal(f"{named(error)}; it may have arrived", secrets), None, final=False)

    def _revealed(self) -> tuple[list[str], str, dict[str, str]]:
        """What errors must not show, at the end the one for signing; the URL; and the headers."""
        target = self._target
        url = reveal(target.url)
        headers = {name: reveal(value) for name, value in target.headers.items()}
        secrets = [headers[name] for name, value in target.headers.items() if isinstance(value, Secret)]
        if isinstance(target.url, Secret):
            secrets += [url, *_parts_of(url)]
        if target.sign is not None:
            secrets.append(reveal(target.sign))
        return secrets, url, headers


def signature(secret: str, id: str, at: int, body: bytes) -> dict[str, str]:
    """The headers of a signed request, as https://www.standardwebhooks.com has them.

    Args:
        secret: The shared secret; base64 behind `whsec_`, or as it is.
        id: The message's.
        at: Seconds since 1970.
        body: What is signed, together with both.

    Raises:
        ConfigurationError: What stands behind `whsec_` is no base64.
    """
    key = secret.encode()
    if secret.startswith(_ENCODED):
        try:
            key = base64.b64decode(secret.removeprefix(_ENCODED), validate=True)
        except ValueError:
            raise ConfigurationError(
                "Webhook(sign=...): the secret begins with 'whsec_', but no base64 follows"
            ) from None
    signed = hmac.new(key, f"{id}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def _parts_of(url: str) -> Iterator[str]:
    """What of a secret URL servers and errors repeat."""
    with suppress(ValueError):
        parts = urlsplit(url)
        yield from filter(None, (parts.password, parts.username))
        yield f"{parts.path}?{parts.query}"
        yield from (*parts.path.split("/"), *(value for _, value in parse_qsl(parts.query)))
