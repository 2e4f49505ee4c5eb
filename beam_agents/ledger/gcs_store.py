"""Objects of a Google Cloud Storage bucket: read, written on a condition, deleted and listed, and nothing else.

This speaks the JSON API over `google-auth` rather than `google.cloud.storage`: that client asks for the bucket in a
thread of its own at each object that is not there, which doubles the requests of a ledger and needs another permission.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote

from beam_agents.errors import ConfigurationError, LedgerError
from beam_agents.ledger.base import LedgerUnavailable
from beam_agents.ledger.gcs_clock import ServerClock

try:
    import google.auth
    import requests
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
    from google.auth.transport.requests import AuthorizedSession
    from requests.adapters import HTTPAdapter
except ImportError as missing:
    raise ConfigurationError("a ledger at gs:// needs more packages: pip install 'beam-agents[gcs]'") from missing

_HOST = "https://storage.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_PAUSES = (0.1, 0.4)
"""Seconds before a request is sent again; then the ledger is unavailable, and its writer tries with longer pauses."""
_PASSING = frozenset((408, 429, 500, 502, 503, 504))
_PASSING_REASONS = ("rateLimitExceeded", "userRateLimitExceeded")
_PAGE = 1000
_ADVICE = {
    401: "give the workers credentials of a service account (GOOGLE_APPLICATION_CREDENTIALS, or the machine's own)",
    403: "give the workers' service account the role 'Storage Object User' (roles/storage.objectUser) on the bucket",
    404: "make the bucket first, or correct its name",
}


class Stored(NamedTuple):
    """An object as it was read."""

    data: bytes
    generation: int
    """Changes with each write of the object, and never comes again."""


@dataclass
class Traffic:
    """What was sent to the server and received from it, failed tries included."""

    reads: int = 0
    writes: int = 0
    lists: int = 0
    deletes: int = 0
    sent: int = 0
    """Bytes of bodies."""
    received: int = 0
    """Bytes of bodies."""

    @property
    def requests(self) -> int:
        """All requests."""
        return self.reads + self.writes + self.lists + self.deletes


class GcsStore:
    """The objects below a prefix of a bucket. May be used by several threads at once.

    Args:
        bucket: Its name.
        prefix: Goes before each name; empty, or ends with a slash.
        emulator: The address of a server that stands in for Google's, which is asked without credentials.
        connections: How many threads ask at once.
        timeout: Seconds that a request may go without an answer.

    Raises:
        LedgerError: There are no credentials.
    """

    def __init__(self, bucket: str, prefix: str, *, emulator: str | None, connections: int, timeout: float) -> None:
        self.traffic = Traffic()
        self.clock = ServerClock()
        self._prefix = prefix
        self._bucket = bucket
        self._timeout = timeout
        self._lock = threading.Lock()
        self._session = _anonymous() if emulator else _authorized()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=connections))
        path = f"storage/v1/b/{quote(bucket, safe='')}/o"
        self._objects = f"{emulator or _HOST}/{path}"
        self._uploads = f"{emulator or _HOST}/upload/{path}"

    def get(self, name: str) -> Stored | None:
        """The object, or `None` when there is none (or no bucket)."""
        response = self._ask("reads", "GET", self._object(name), {"alt": "media"}, allowed=(404,))
        if response.status_code == 404:
            return None
        return Stored(response.content, int(response.headers["X-Goog-Generation"]))

    def now(self) -> float:
        """The server's time, seconds since 1970."""
        return self.clock.at(time.monotonic())

    def updated(self, name: str) -> float | None:
        """When an object was written, seconds since 1970 by the server's time; `None` when there is none."""
        response = self._ask("reads", "GET", self._object(name), {"fields": "updated"}, allowed=(404,))
        if response.status_code == 404:
            return None
        return datetime.fromisoformat(response.json()["updated"]).timestamp()

    def put(self, name: str, data: bytes, generation: int | None = None) -> int:
        """Writes an object, whatever is there; or only if it is there in this generation, 0 if it must not be there.

        When an answer was lost, it may be refused because of its own first try.

        Returns:
            Its new generation, 0 if the condition was not met.
        """
        parameters = {"uploadType": "media", "name": self._prefix + name, "fields": "generation"}
        if generation is not None:
            parameters["ifGenerationMatch"] = str(generation)
        response = self._ask("writes", "POST", self._uploads, parameters, data, allowed=(412,))
        return 0 if response.status_code == 412 else int(response.json()["generation"])

    def delete(self, name: str, generation: int | None = None) -> None:
        """Deletes an object if it is there; or only if it is there in this generation."""
        parameters = {} if generation is None else {"ifGenerationMatch": str(generation)}
        self._ask("deletes", "DELETE", self._object(name), parameters, allowed=(404, 412))

    def names(self, folder: str, start: str = "", end: str | None = None) -> Iterator[str]:
        """The names that begin with `folder`, in order.

        Args:
            folder: What they begin with.
            start: What follows is not less than this.
            end: What follows is less than this.
        """
        prefix = self._prefix + folder
        parameters = {"prefix": prefix, "fields": "items/name,nextPageToken", "maxResults": str(_PAGE)}
        if start:
            parameters["startOffset"] = prefix + start
        if end is not None:
            parameters["endOffset"] = prefix + end
        while True:
            page = self._ask("lists", "GET", self._objects, parameters).json()
            for item in page.get("items", ()):
                yield str(item["name"]).removeprefix(self._prefix)
            if not page.get("nextPageToken"):
                return
            parameters["pageToken"] = page["nextPageToken"]

    def close(self) -> None:
        """Disconnects."""
        self._session.close()

    def _object(self, name: str) -> str:
        return f"{self._objects}/{quote(self._prefix + name, safe='')}"

    def _ask(
        self,
        kind: str,
        method: str,
        url: str,
        parameters: dict[str, str],
        data: bytes | None = None,
        *,
        allowed: tuple[int, ...] = (),
    ) -> requests.Response:
        pauses = iter(_PAUSES)
        while True:
            try:
                return self._ask_once(kind, method, url, parameters, data, allowed)
            except _Passing as passing:
                pause = next(pauses, None)
                if pause is None:
                    raise LedgerUnavailable(f"bucket {self._bucket!r}: {passing}") from passing
            time.sleep(pause)

    def _ask_once(
        self, kind: str, method: str, url: str, parameters: dict[str, str], data: bytes | None, allowed: tuple[int, ...]
    ) -> requests.Response:
        headers = {"Content-Type": "application/json"} if data is not None else {}
        sent = time.monotonic()
        received = 0
        try:
            response = self._session.request(
                method, url, params=parameters, data=data, headers=headers, timeout=self._timeout
            )
            received = len(response.content)
        except requests.Timeout as error:
            raise LedgerUnavailable(f"bucket {self._bucket!r}: {error}") from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise _Passing(str(error)) from error
        except GoogleAuthError as error:
            if isinstance(error, TransportError) or error.retryable:
                raise _Passing(str(error)) from error
            raise LedgerError(f"bucket {self._bucket!r}: {error}; {_ADVICE[401]}") from error
        finally:
            with self._lock:
                setattr(self.traffic, kind, getattr(self.traffic, kind) + 1)
                self.traffic.sent += len(data or b"")
                self.traffic.received += received
        if "Date" in response.headers:
            self.clock.observe(response.headers["Date"], sent, time.monotonic())
        status = response.status_code
        if status < 300 or status in allowed:
            return response
        reason = f"{method} was answered with {status} {_message(response)}"
        if status in _PASSING or (status == 403 and any(name in response.text for name in _PASSING_REASONS)):
            raise _Passing(reason)
        advice = f"; {_ADVICE[status]}" if status in _ADVICE else ""
        raise LedgerError(f"bucket {self._bucket!r}: {reason}{advice}")


class _Passing(Exception):
    """A request failed in a way that may pass."""


def _anonymous() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


def _authorized() -> requests.Session:
    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    except DefaultCredentialsError as error:
        raise LedgerError(f"a ledger at gs:// found no credentials: {error}; {_ADVICE[401]}") from error
    session: requests.Session = AuthorizedSession(credentials)
    return session


def _message(response: requests.Response) -> str:
    """What the server says, in one line."""
    try:
        said: Any = json.loads(response.text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = response.text or response.reason
    return " ".join(str(said).split())[:300]
