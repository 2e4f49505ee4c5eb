"""Who may send: bearer tokens, and signatures of webhooks."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from starlette.requests import Request

from beam_agents.errors import ConfigurationError
from beam_agents.io.ingress.problems import Problem
from beam_agents.secrets import Secret

Form = Literal["github", "stripe"]

_TOLERANCE_SECONDS = 300.0
"""How old a signature with a time in it may be."""


@dataclass(frozen=True)
class Signature:
    """How a webhook's sender signs: HMAC with SHA-256 over the body.

    Args:
        secret: What both sides know.
        header: Where the signature is.
        form: `github`: `sha256=` and hex digits. `stripe`: `t=SECONDS,v1=HEX`, where the time and a dot stand
            before the body; a signature that is older than five minutes is refused, so that nobody can send it again.
    """

    secret: Secret
    header: str = "X-Hub-Signature-256"
    form: Form = "github"

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ConfigurationError(f"Signature(form={self.form!r}) must be one of {', '.join(get_args(Form))}")


class Admission:
    """Lets those in who know a token, or have signed what they send.

    Args:
        tokens: Bearer tokens, each a caller of its own.
        signature: How webhooks are signed.
        open: Lets everybody in.

    Raises:
        ConfigurationError: A secret is not there, or there is none at all.
    """

    def __init__(self, tokens: Sequence[Secret], signature: Signature | None, open: bool) -> None:
        if not (tokens or signature or open):
            raise ConfigurationError("nobody may send: give a token or a signature's secret, or say that all may")
        self._tokens = [(token.name, token.reveal().encode()) for token in tokens]
        self._signature = signature
        self._secret = signature.secret.reveal().encode() if signature else b""
        self.bearer = bool(tokens)
        """Whether a bearer token lets in."""
        self.signature_header = signature.header if signature else None
        """The header of a webhook's signature, if one lets in."""
        self.open = open
        """Whether everybody is let in."""

    def caller(self, request: Request, body: bytes | None) -> str:
        """Who sends.

        Args:
            request: The request.
            body: Of the request; `None` if it has none.

        Raises:
            Problem: 401.
        """
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if given and scheme.lower() == "bearer":
            # All are compared, so that the time says nothing of which one it was.
            found = [
                name for name, token in self._tokens if hmac.compare_digest(token, given.strip().encode("latin-1"))
            ]
            if found:
                return found[0]
        elif self._signature and body is not None:
            signed = request.headers.get(self._signature.header)
            if signed and self._signed(signed, body):
                return "signature"
        if self.open:
            return "anybody"
        raise Problem(401, self._wanted(), headers={"WWW-Authenticate": "Bearer"} if self._tokens else None)

    def _signed(self, given: str, body: bytes) -> bool:
        assert self._signature is not None
        if self._signature.form == "github":
            return self._matches(given.removeprefix("sha256="), body)
        parts = [part.strip().partition("=") for part in given.split(",")]
        times = [value for name, _, value in parts if name == "t"]
        if len(times) != 1 or not (times[0].isascii() and times[0].isdigit() and len(times[0]) < 15):
            return False
        if abs(time.time() - int(times[0])) > _TOLERANCE_SECONDS:
            return False
        signed = times[0].encode() + b"." + body
        return any(self._matches(value, signed) for name, _, value in parts if name == "v1")

    def _matches(self, digits: str, signed: bytes) -> bool:
        made = hmac.new(self._secret, signed, hashlib.sha256).hexdigest()
        return hmac.compare_digest(made.encode(), digits.encode("latin-1", "replace"))

    def _wanted(self) -> str:
        ways = ["a bearer token in Authorization"] if self._tokens else []
        if self._signature:
            ways.append(f"a signature of the body in {self._signature.header}")
        return f"send {' or '.join(ways)}; what was sent is missing, wrong or too old"
