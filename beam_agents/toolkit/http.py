"""`http_tool`: a request to an HTTP server as a tool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from beam_agents.errors import ConfigurationError
from beam_agents.secrets import Secret
from beam_agents.toolkit.declared import (
    KEY,
    Declaration,
    Reconcile,
    check_effect,
    check_limits,
    used_names,
    without_user,
)
from beam_agents.toolkit.http_client import HttpClient
from beam_agents.toolkit.http_request import HttpRequest, check_headers
from beam_agents.toolkit.url_template import UrlTemplate
from beam_agents.tools import Effect, Tool

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_WITH_BODY = ("POST", "PUT", "PATCH")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def http_tool(
    method: str,
    url: str,
    *,
    effect: Effect,
    headers: Mapping[str, str | Secret] | None = None,
    body: str | None = None,
    reconcile: str | Reconcile | None = None,
    allow_hosts: Sequence[str] = (),
    timeout: timedelta = timedelta(seconds=30),
    retries: int | None = None,
    max_bytes: int = 1_000_000,
    model_retries: int = 2,
    in_flight: int | None = None,
    name: str | None = None,
    description: str | None = None,
    redact: Callable[[str], str] | None = None,
) -> Callable[[Callable[..., Any]], Tool[Any]]:
    """Makes a request to an HTTP server a tool. It decorates a typed function without a body.

    Args:
        method: `"GET"`, `"POST"`, `"PUT"`, `"PATCH"` or `"DELETE"`.
        url: `"https://host/path/{id}?q={q}"`. Arguments are percent-encoded for their place, and cannot change the
            host or leave the path. `{idempotency_key}` is the call's key.
        effect: What it means to send the request again. `idempotent` and `once` send the call's key as the header
            `Idempotency-Key`.
        headers: Further headers. A `Secret` is looked up in the worker.
        body: The parameter whose value is the JSON body. Without it the parameters that are not in the URL are the
            fields of the body.
        reconcile: For `once`: the URL that says what became of a call: 200 with the result, 404 if it does not know it.
        allow_hosts: Hosts, or `host:port`, to which a GET may be redirected besides the URL's own. Headers with
            secrets are not sent there.
        timeout: For one request and its answer.
        retries: Further requests after 429, 5xx and connection errors, with the pause that `Retry-After` asks for as
            far as `timeout` goes; by default 2. A `once` request is sent again only if there was no connection.
        max_bytes: The longest answer, decompressed.
        model_retries, in_flight, name, description, redact: As in `@tool`.

    Raises:
        ConfigurationError: The declaration cannot work.
    """
    if not isinstance(method, str) or method not in _METHODS:
        raise ConfigurationError(f"http_tool: method {method!r} must be one of {', '.join(_METHODS)}")
    kind = f"http_tool {method} {without_user(url)}"
    check_effect(kind, effect)
    check_limits(kind, timeout=timeout, max_bytes=max_bytes)
    if isinstance(allow_hosts, str):
        raise ConfigurationError(f"{kind}: allow_hosts={allow_hosts!r} must be a list of hosts")
    template, asked = UrlTemplate(kind, url), Reconcile(reconcile) if isinstance(reconcile, str) else reconcile
    if asked is not None and effect != "once":
        raise ConfigurationError(f"{kind}: reconcile is for 'once' calls only; drop it or declare effect='once'")
    ask = UrlTemplate(kind, asked.ask) if asked is not None else None
    sent = check_headers(kind, headers or {})
    _check_secrets_stay_secret(kind, template, ask, sent)

    def declare(function: Callable[..., Any]) -> Tool[Any]:
        declared = Declaration("http_tool", function)
        used_names(kind, template.names | (ask.names if ask is not None else {}), declared.parameters)
        in_body = _in_body(kind, method, body, template, declared)
        request = HttpRequest(
            method,
            template,
            effect=effect,
            headers=sent,
            in_body=in_body,
            body=body,
            returns=declared.returns,
            client=HttpClient(allow_hosts=tuple(allow_hosts), max_bytes=max_bytes, fresh=effect == "once"),
            reconcile=asked,
            ask=ask,
            retries=2 if retries is None else retries,
            seconds=timeout.total_seconds(),
            redact=redact,
        )
        return Tool(
            declared.calling(request.call),
            effect=effect,
            reconcile=declared.calling(request.reconcile) if asked is not None else None,
            timeout=timeout,
            retries=(retries or 0) if effect == "once" else request.retries,
            model_retries=model_retries,
            in_flight=in_flight,
            name=name,
            description=description,
            redact=redact,
        )

    return declare


def _in_body(kind: str, method: str, body: str | None, template: UrlTemplate, declared: Declaration) -> tuple[str, ...]:
    """The parameters that are sent in the body."""
    rest = tuple(parameter for parameter in declared.parameters if parameter not in template.names)
    if KEY in declared.parameters:
        raise ConfigurationError(f"{kind}: the engine fills {KEY!r}; leave it out of the parameters")
    if body is not None:
        if method not in _WITH_BODY:
            raise ConfigurationError(f"{kind}: {method} has no body; drop body={body!r}")
        if rest != (body,):
            raise ConfigurationError(
                f"{kind}: body={body!r} must be the one parameter that is not in the URL; these are: {rest!r}"
            )
    elif rest and method not in _WITH_BODY:
        raise ConfigurationError(f"{kind}: put {', '.join(map(repr, rest))} in the URL: {method} has no body")
    return rest


def _check_secrets_stay_secret(
    kind: str, template: UrlTemplate, ask: UrlTemplate | None, headers: Mapping[str, str | Secret]
) -> None:
    secret = [name for name, value in headers.items() if isinstance(value, Secret)]
    for origin in [template.origin, *([ask.origin] if ask is not None else [])]:
        if secret and origin[0] == "http" and origin[1] not in _LOOPBACK:
            raise ConfigurationError(f"{kind}: header {secret[0]!r} is a secret and would be sent in clear; use https")
    if secret and ask is not None and ask.origin != template.origin:
        raise ConfigurationError(
            f"{kind}: reconcile asks another host, which would get the secret of header {secret[0]!r}; "
            "write a function with @tool for that"
        )
