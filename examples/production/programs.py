"""Programs beside the servers: an HTTP door, a receiver of webhooks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

_PATIENCE_SECONDS = 60.0
_END_SECONDS = 15.0
_ERROR_TAIL = 2_000


class ProgramFailed(RuntimeError):
    """A program does not start; the message has the end of its log."""


class Program:
    """A program that serves HTTP. Ends with this process at the latest, however that ends.

    Args:
        name: What it is called, for people.
        command: The program and its arguments.
        url: Where it serves; the same when it is started again.
        directory: Where it starts.
        environment: Its variables besides those of this process.
        health: The path that answers when it is ready, with any status below 500.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        url: str,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        health: str = "/",
    ) -> None:
        self.name = name
        self.url = url
        self._command = list(command)
        self._directory = directory
        self._environment = {**os.environ, **(environment or {})}
        self._health = f"{url}{health}"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of its process; `None` while it is not running."""
        return self._process.pid if self._process is not None else None

    def start(self, log: Path) -> None:
        """Starts it, and waits until it is ready.

        Args:
            log: What it says; appended to.

        Raises:
            ProgramFailed: It does not start.
        """
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self._directory,
                env=self._environment,
                start_new_session=True,
            )
        # Its input ends with this process, however that ends.
        self._guard = subprocess.Popen(
            ["sh", "-c", "cat; kill -KILL $0", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + _PATIENCE_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > until:
                self.end(signal.SIGKILL)
                said = log.read_bytes()[-_ERROR_TAIL:].decode(errors="replace")
                raise ProgramFailed(f"{self.name} does not start:\n{said}")
            time.sleep(0.1)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it. May be called again."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.kill()
            self._guard.wait()
            self._guard.stdin.close()
            self._guard = None
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _ready(self) -> bool:
        try:
            with urlopen(self._health, timeout=2):
                return True
        except HTTPError as error:
            error.close()
            return error.code < 500
        except OSError:
            return False


def loopback_url(port: int) -> str:
    """The URL of a program that is to serve on this machine.

    Args:
        port: 0 takes a free one.
    """
    if port:
        return f"http://127.0.0.1:{port}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def port_of(url: str) -> int:
    """The port of a `loopback_url`."""
    port = urlsplit(url).port
    assert port is not None
    return port
