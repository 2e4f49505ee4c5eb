"""The other side, as a program sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote, urlsplit

_SECONDS = 60.0


class Server:
    """A running `benchmarks.crash.server`.

    Args:
        url: Its address, and the place there.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._address, self._place = urlsplit(url)[1:3]

    def post(self, path: str, **body: Any) -> Any:
        """Sends a body as JSON, and returns the answer's.

        Raises:
            OSError: The server is not there.
            RuntimeError: It refused.
        """
        return self._ask("POST", path, json.dumps(body))

    def get(self, path: str, **query: str) -> Any:
        """Asks, and returns the answer's JSON; raises as `post` does."""
        written = "&".join(f"{name}={quote(value)}" for name, value in query.items())
        return self._ask("GET", f"{path}?{written}")

    def _ask(self, method: str, path: str, body: str | None = None) -> Any:
        # A connection for each request: none is shared with a forked child.
        connection = HTTPConnection(self._address, timeout=_SECONDS)
        try:
            connection.request(method, self._place + path, body)
            response = connection.getresponse()
            said = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{method} {path} {body or ''}: {response.status} {said}")
        return json.loads(said)


@contextmanager
def running_server() -> Iterator[Server]:
    """Starts a server in a process of its own, which ends with the block."""
    command = [sys.executable, "-m", "benchmarks.crash.server", "--until-input-ends"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError(f"{' '.join(command)} ended before it served; its error output says why")
            yield Server(url)
        finally:
            process.terminate()
