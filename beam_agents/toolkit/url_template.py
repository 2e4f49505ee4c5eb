"""URLs with places for arguments, which an argument cannot leave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any
from urllib.parse import quote, urlsplit

from beam_agents.codec import to_json_value
from beam_agents.errors import ConfigurationError, ModelRetry
from beam_agents.toolkit.declared import as_text, without_user

_URL = re.compile(r"(?P<origin>https?://[^/?#{}@\s\\]+)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?")
_LITERAL = "%:@!$&'()*+,;=~-._"

_Parts = list[tuple[str, str | None]]
"""Literal texts, each with the name of the argument behind it."""


class UrlTemplate:
    """A URL such as `https://host/accounts/{account}?since={since}`.

    Arguments may stand in the path and as values of the query, and are percent-encoded there. One that is `None`
    drops its pair of the query; a list repeats it.

    Args:
        kind: The tool, for errors.
        text: The URL.

    Raises:
        ConfigurationError: It is no such URL.
    """

    def __init__(self, kind: str, text: str) -> None:
        self._kind, self._text = kind, text
        found = _URL.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ConfigurationError(
                f"{kind}: {without_user(text)} is no URL template: write 'https://host/path/{{id}}?q={{q}}', with "
                "arguments in the path and as values of the query only, no user and no fragment"
            )
        self.origin = origin_of(found["origin"])
        self._origin_text = found["origin"]
        self._segments = [self._parse(segment) for segment in (found["path"] or "/")[1:].split("/")]
        self._query: list[tuple[str, _Parts]] = []
        for pair in filter(None, (found["query"] or "").split("&")):
            name, _, value = pair.partition("=")
            if "{" in name:
                raise ConfigurationError(f"{kind}: {text!r}: only values of the query may hold arguments, not {name!r}")
            self._query.append((quote(name, safe=_LITERAL.replace("&", "").replace("=", "")), self._parse(value)))

    @property
    def names(self) -> dict[str, str]:
        """The arguments that it uses, each with where."""
        parts = [*self._segments, *(value for _, value in self._query)]
        return {name: f"the URL {self._text!r}" for part in parts for _, name in part if name is not None}

    def fill(self, values: Mapping[str, Any]) -> str:
        """The URL with arguments.

        Raises:
            ModelRetry: One of them cannot stand in its place: nothing, `.` or `..` in a path.
        """
        path = "/".join(self._segment(segment, values) for segment in self._segments)
        pairs = [f"{name}={text}" for name, parts in self._query for text in _query_texts(parts, values)]
        return f"{self._origin_text}/{path}" + ("?" + "&".join(pairs) if pairs else "")

    def _parse(self, text: str) -> _Parts:
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise ConfigurationError(f"{self._kind}: {self._text!r}: {error}") from error
        parts: _Parts = []
        for literal, name, form, conversion in parsed:
            if name is not None and (form or conversion or not name.isidentifier()):
                raise ConfigurationError(f"{self._kind}: {self._text!r}: {{{name}}} must be the name of a parameter")
            parts.append((quote(literal, safe=_LITERAL), name))
        return parts

    def _segment(self, parts: _Parts, values: Mapping[str, Any]) -> str:
        texts: list[str] = []
        for literal, name in parts:
            texts.append(literal)
            if name is None:
                continue
            value = as_text(values[name]) if values[name] is not None else ""
            # Servers that decode before they route would take an encoded slash and two dots for a way up.
            if not value or any(part in (".", "..") for part in re.split(r"[/\\]", value)):
                raise ModelRetry(f"{name}: {value!r} cannot stand in a path; give a name or a number")
            texts.append(quote(value, safe=""))
        return "".join(texts)


def _query_texts(parts: _Parts, values: Mapping[str, Any]) -> list[str]:
    """The values of one name of the query: none, one or several."""
    only = parts[0][1] if len(parts) == 1 and not parts[0][0] else None
    if only is not None:
        value = to_json_value(values[only])
        if value is None:
            return []
        return [quote(as_text(item), safe="") for item in (value if isinstance(value, list) else [value])]
    return [
        "".join(literal + ("" if name is None else quote(as_text(values[name]), safe="")) for literal, name in parts)
    ]


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL.

    Raises:
        ValueError: It has none of HTTP.
    """
    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname:
        raise ValueError(f"{url!r} is no URL of HTTP")
    return split.scheme, split.hostname, split.port or (443 if split.scheme == "https" else 80)
