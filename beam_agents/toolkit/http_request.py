"""One call of an HTTP tool: what is sent, and what the answer means for the effect."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from pydantic import ValidationError

from beam_agents.codec import adapter, canonical_json, to_json_value
from beam_agents.engine.threads import in_thread
from beam_agents.errors import BeamAgentsError, ConfigurationError, ModelRetry, NotCalled, ToolFailed
from beam_agents.secrets import Secret, conceal_json, is_header_value, reveal
from beam_agents.toolkit.declared import KEY, Context, Lost, Reconcile
from beam_agents.toolkit.http_client import Answer, HttpClient
from beam_agents.toolkit.url_template import UrlTemplate
from beam_agents.tools import CannotHappen, Effect, Happened, Unknown

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SET_BY_US = ("content-length", "content-type", "host", "idempotency-key", "transfer-encoding")

# Another argument may help; the model is told, and the attempt is counted against `model_retries`.
_WRONG_ARGUMENTS = (400, 422)
# It is as it is; the model is told and goes on.
_NOT_THERE = (404, 409, 410, 412)
_AGAIN_LATER = (408, 425, 429)
_LONGEST_QUOTE = 300
_CONNECT_AGAIN_SECONDS = 1.0
"""A `once` request whose connection was refused is sent again for so long: its intent must still be fresh."""

_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""What fails before a byte was sent: no address, no route, refused, no TLS, no connection in time."""


class HttpError(BeamAgentsError):
    """A request failed, or nobody knows what became of it."""


class HttpRequest:
    """Carries an HTTP tool out. It can be pickled; what it is made of is checked by `http_tool`."""

    def __init__(
        self,
        method: str,
        template: UrlTemplate,
        *,
        effect: Effect,
        headers: Mapping[str, str | Secret],
        in_body: tuple[str, ...],
        body: str | None,
        returns: Any,
        client: HttpClient,
        reconcile: Reconcile | None,
        ask: UrlTemplate | None,
        retries: int,
        seconds: float,
        redact: Callable[[str], str] | None,
    ) -> None:
        self.retries = retries
        self._method = method
        self._template = template
        self._effect = effect
        self._headers = dict(headers)
        self._secret = frozenset(name for name, value in headers.items() if isinstance(value, Secret))
        self._in_body = in_body
        self._body = body
        self._returns = returns
        self._client = client
        self._reconcile = reconcile
        self._ask = ask
        self._seconds = seconds
        self._redact = redact

    async def call(self, ctx: Context, values: dict[str, Any]) -> Any:
        """Sends the request.

        Raises:
            ModelRetry: An argument cannot stand in the URL, or the server says that they are wrong.
            ToolFailed: The server says that it cannot be done.
            NotCalled: It had no effect: it was never sent, or was refused.
            HttpError: Anything else; a `once` request may have had its effect.
        """
        started = time.monotonic()
        url = self._template.fill(values | {KEY: ctx.idempotency_key})
        headers = await self._revealed()
        if self._effect != "pure":
            headers["Idempotency-Key"] = ctx.idempotency_key
        hidden = [headers[name] for name in self._secret]
        answer = await self._sent(url, headers, self._json(values), started, hidden)
        if 200 <= answer.status < 300:
            return self._result(answer, hidden)
        raise await self._judged(answer, ctx, started, hidden)

    async def reconcile(self, ctx: Context, values: dict[str, Any]) -> Happened[Any] | CannotHappen | Unknown:
        """Asks the server what became of the call."""
        assert self._ask is not None
        assert self._reconcile is not None
        url = self._ask.fill(values | {KEY: ctx.idempotency_key})
        headers = await self._revealed()
        hidden = [headers[name] for name in self._secret]
        try:
            answer = await self._client.send("GET", url, headers=headers, secret=self._secret)
        except (aiohttp.ClientError, OSError) as error:
            return Unknown(f"the server cannot be asked: {self._clean(str(error), hidden)}")
        if answer.status in (404, 410):
            return self._reconcile.nothing_found()
        if not 200 <= answer.status < 300:
            return Unknown(f"the server answered with {answer.title}")
        return Happened(self._result(answer, hidden))

    async def _sent(
        self, url: str, headers: Mapping[str, str], body: bytes | None, started: float, hidden: list[str]
    ) -> Answer:
        tries = 0
        while True:
            try:
                return await self._client.send(self._method, url, headers=headers, secret=self._secret, json=body)
            except (aiohttp.ClientError, OSError) as error:
                why = self._clean(f"{type(error).__name__}: {error}", hidden)
                connected = not isinstance(error, _NOT_CONNECTED)
            if self._effect != "once" or connected:
                raise HttpError(f"the connection failed: {why}")
            tries += 1
            if tries > 2 or time.monotonic() - started > _CONNECT_AGAIN_SECONDS / 2:
                raise ToolFailed(f"the server cannot be reached, so nothing was sent: {why}")
            await asyncio.sleep(0.1 * tries)
            if time.monotonic() - started > _CONNECT_AGAIN_SECONDS:  # the process was frozen
                raise ToolFailed(f"the server cannot be reached, so nothing was sent: {why}")

    async def _revealed(self) -> dict[str, str]:
        """The headers with their secrets' values."""
        try:
            headers: dict[str, str] = await in_thread(_reveal_all, self._headers)
        except ConfigurationError as error:
            raise NotCalled(str(error)) from error
        for name in self._secret:
            if not is_header_value(headers[name]):
                raise NotCalled(f"{self._named(name)} has characters that a header cannot have, such as a line break")
        return headers

    def _json(self, values: dict[str, Any]) -> bytes | None:
        if not self._in_body:
            return None
        fields = {name: to_json_value(values[name]) for name in self._in_body}
        return canonical_json(fields[self._body] if self._body is not None else fields).encode()

    def _result(self, answer: Answer, hidden: list[str]) -> Any:
        """The body as the declared type; what does not fit is left to the engine to judge, which knows the effect."""
        if self._returns in (None, type(None)):
            return None
        if answer.cut:
            return Lost(f"an answer of more than {len(answer.body)} bytes, see max_bytes")
        text = conceal_json(answer.text, hidden)
        if self._returns is str:
            return text
        if not text.strip():
            return None
        type_ = adapter(self._returns)
        try:
            return type_.validate_json(text, by_alias=True, by_name=True)
        except ValidationError:  # the engine says what is wrong
            try:
                return json.loads(text)
            except ValueError:
                return text

    async def _judged(self, answer: Answer, ctx: Context, started: float, hidden: list[str]) -> Exception:
        """What an answer without a result means."""
        said = self._quote(self._clean(answer.text, hidden))
        message = f"{answer.title}{f': {said}' if said else ''}"
        status = answer.status
        if status in (401, 403):
            secrets = ", ".join(self._named(name) for name in sorted(self._secret))
            return NotCalled(f"{answer.title}; check {secrets or 'its headers: none of them is a secret'}")
        if status in (429, 503) and self._effect != "once" and ctx.attempt <= self.retries:
            left = self._seconds - (time.monotonic() - started)
            from beam_agents.models.openai_client import retry_after  # it takes a second to import

            await asyncio.sleep(min(retry_after(answer.headers, now=time.time()) or 0.0, max(0.0, left - 0.5)))
        if status == 429 and self._effect == "once":
            return ToolFailed(message)
        if status in _AGAIN_LATER or status >= 500 or (300 <= status < 400 and status not in (307, 308)):
            return HttpError(message)
        if status in _WRONG_ARGUMENTS + _NOT_THERE and self._effect == "idempotent" and ctx.attempt > 1:
            return HttpError(f"{message}; an earlier attempt may have had its effect")
        if status in _WRONG_ARGUMENTS:
            return ModelRetry(message)
        if status in _NOT_THERE:
            return ToolFailed(message)
        if 300 <= status < 400:
            return NotCalled(f"{answer.title}: {self._method} is not redirected; declare the URL that it leads to")
        return NotCalled(message)

    def _named(self, header: str) -> str:
        value = self._headers[header]
        return f"{value.name} (header {header!r})" if isinstance(value, Secret) else f"header {header!r}"

    def _clean(self, text: str, hidden: list[str]) -> str:
        text = conceal_json(text, hidden)
        try:
            return self._redact(text) if self._redact is not None else text
        except Exception as error:
            return f"(its redact function raised {type(error).__name__})"

    def _quote(self, text: str) -> str:
        """The beginning of a text, in one line."""
        line = re.sub(r"\s+", " ", text).strip()
        return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}..."


def check_headers(kind: str, headers: Mapping[str, str | Secret]) -> dict[str, str | Secret]:
    """Headers as they are sent.

    Raises:
        ConfigurationError: One cannot be sent, or is set by the tool itself.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER.fullmatch(name) or name.lower() in _SET_BY_US:
            raise ConfigurationError(f"{kind}: header {name!r} cannot be given, or is set by the tool itself")
        if not isinstance(value, Secret) and not (isinstance(value, str) and is_header_value(value)):
            raise ConfigurationError(f"{kind}: header {name!r} must be a text of one line, or a Secret")
        if isinstance(value, str) and name.lower() in ("authorization", "cookie", "proxy-authorization"):
            # It would be in every pickle of the pipeline.
            raise ConfigurationError(f"{kind}: header {name!r} is a secret: give EnvSecret('NAME') or another Secret")
    return dict(headers)


def _reveal_all(headers: Mapping[str, str | Secret]) -> dict[str, str]:
    return {name: reveal(value) for name, value in headers.items()}
