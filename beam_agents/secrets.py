"""Secrets that a worker looks up when it needs them, so that nothing else ever holds their value."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from beam_agents.errors import ConfigurationError

_SHORTEST = 4
"""Characters of a value that is concealed."""


class Secret(ABC):
    """Where a secret is found. It is pickled and shown as the place, never as the value."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the secret is called in errors: the place, not the value."""

    @abstractmethod
    def reveal(self) -> str:
        """The value, looked up in this process, now: one that was changed since is the new one.

        Raises:
            ConfigurationError: It is not there, or it is empty.
        """

    @property
    def may_come(self) -> bool:
        """Whether a value that cannot be had now may be had later in this process."""
        return True

    def prefixed(self, prefix: str) -> Secret:
        """This secret with a text before it: `EnvSecret("TOKEN").prefixed("Bearer ")`."""
        return _Prefixed(prefix, self)


@dataclass(frozen=True)
class EnvSecret(Secret):
    """A secret in an environment variable of the worker.

    Args:
        variable: The variable's name.
    """

    variable: str

    def __post_init__(self) -> None:
        _check_place("EnvSecret", "the name of an environment variable", self.variable, forbidden="=")

    @property
    def may_come(self) -> bool:
        """No: nobody sets it later."""
        return False

    @property
    def name(self) -> str:
        return f"environment variable {self.variable!r}"

    def reveal(self) -> str:
        value = os.environ.get(self.variable)
        if not value:
            raise ConfigurationError(f"{self.name} holds a secret and is not set: set it where the workers run")
        return value


@dataclass(frozen=True)
class FileSecret(Secret):
    """A secret in a file that the worker can read, as Kubernetes and Docker mount them.

    Args:
        path: The file's path. White space around its text is cut off.
    """

    path: str

    def __post_init__(self) -> None:
        _check_place("FileSecret", "the path of a file", self.path)

    @property
    def name(self) -> str:
        return f"file {self.path!r}"

    def reveal(self) -> str:
        try:
            value = Path(self.path).read_text("utf-8").strip()
        except OSError as error:
            raise ConfigurationError(
                f"{self.name} holds a secret and cannot be read: {error.strerror or type(error).__name__}; "
                "put it where the workers run"
            ) from error
        except UnicodeDecodeError:
            raise ConfigurationError(f"{self.name} holds a secret that is not UTF-8 text") from None
        if not value:
            raise ConfigurationError(f"{self.name} holds a secret and is empty")
        return value


@dataclass(frozen=True)
class CallSecret(Secret):
    """A secret that a function of yours fetches, from a vault for example.

    It is called each time that the secret is needed; it should cache what is slow to fetch.

    Args:
        function: A function of a module, without parameters, that returns the secret.
    """

    function: Callable[[], str]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ConfigurationError(f"CallSecret({type(self.function).__name__}): give a function, not its result")
        qualname = getattr(self.function, "__qualname__", "")
        if not qualname or "<" in qualname or getattr(self.function, "__self__", None) is not None:
            # A closure or an object would carry what it holds into the pickled pipeline.
            raise ConfigurationError(
                f"CallSecret: {qualname or type(self.function).__name__!r} is not a function of a module; "
                "write a function at the top of a module that workers can import"
            )

    def __repr__(self) -> str:
        return f"CallSecret({self.function.__module__}.{self.function.__qualname__})"

    @property
    def name(self) -> str:
        return f"function {self.function.__module__}.{self.function.__qualname__}"

    def reveal(self) -> str:
        try:
            value: Any = self.function()
        except Exception as error:
            # Neither its text nor its traceback: a provider's error may quote what it was given.
            kind = type(error).__name__
        else:
            if isinstance(value, str) and value:
                return value
            kind = "an empty text" if value == "" else type(value).__name__
            raise ConfigurationError(f"{self.name} returned {kind} instead of a secret")
        raise ConfigurationError(f"{self.name} raised {kind} instead of returning a secret")


@dataclass(frozen=True)
class _Prefixed(Secret):
    prefix: str
    secret: Secret

    @property
    def may_come(self) -> bool:
        return self.secret.may_come

    @property
    def name(self) -> str:
        return self.secret.name

    def reveal(self) -> str:
        return self.prefix + self.secret.reveal()


def reveal(value: str | Secret) -> str:
    """A text as it is, or the value of a secret."""
    return value.reveal() if isinstance(value, Secret) else value


def conceal(text: str, secrets: Iterable[str]) -> str:
    """`text` with `***` for each of the values of secrets in it, also as JSON and URLs write them.

    Args:
        text: What is about to be shown or recorded.
        secrets: The values. Of one with a prefix such as `Bearer`, what is behind the last space counts, too. Values
            of fewer than four characters stay: they would be found in any text.
    """
    forms: set[str] = set()
    for value in secrets:
        for part in (value, value.rpartition(" ")[2]):
            forms |= {part, json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1], quote(part, safe="")}
    for form in sorted(forms, key=len, reverse=True):
        if len(form) >= _SHORTEST:
            text = text.replace(form, "***")
    return text


def is_header_value(text: str) -> bool:
    """Whether an HTTP header can have this value; a secret from a file often ends with a line break."""
    return all(sign == "\t" or " " <= sign != "\x7f" for sign in text)


def conceal_in(value: Any, secrets: Sequence[str]) -> Any:
    """JSON data with each text in it, names too, as `conceal` shows it; numbers stay."""
    if isinstance(value, str):
        return conceal(value, secrets)
    if isinstance(value, dict):
        return {conceal(name, secrets): conceal_in(item, secrets) for name, item in value.items()}
    return [conceal_in(item, secrets) for item in value] if isinstance(value, list) else value


def conceal_json(text: str, secrets: Sequence[str]) -> str:
    """`conceal` for a text that may be JSON, in which a secret can be written in many ways and digits are no secret."""
    try:
        value = json.loads(text)
        concealed = conceal_in(value, secrets)
    except (ValueError, RecursionError):
        return conceal(text, secrets)
    return text if concealed == value else json.dumps(concealed, ensure_ascii=False)


def _check_place(kind: str, what: str, place: str, forbidden: str = "") -> None:
    if not isinstance(place, str) or not place.strip() or "\0" in place or any(sign in place for sign in forbidden):
        shown = repr(place) if isinstance(place, str) and len(place) < 20 else f"a {type(place).__name__}"
        raise ConfigurationError(f"{kind}: give {what}, not {shown}")
