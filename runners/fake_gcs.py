"""A server that stands in for Google Cloud Storage, for tests: builds `fake-gcs-server` and runs it on a folder.

`python -m runners.fake_gcs` builds it with Go and prints its path. It keeps objects as files, honours conditions on
generations when objects are written, and ignores them when they are deleted.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from runners.tools import tools_folder

VERSION = "1.56.1"

_PACKAGE = "github.com/fsouza/fake-gcs-server"
_ERROR_TAIL = 2_000
_PATIENCE_SECONDS = 60.0
_POLL = 0.02


class FakeGcsUnavailable(RuntimeError):
    """The server is not built and cannot be, or does not start. The message says why."""


def fake_gcs_path() -> Path | None:
    """Where the server was built, or `None` when `install_fake_gcs` was not run yet."""
    path = _directory() / "fake-gcs-server"
    return path if os.access(path, os.X_OK) else None


def install_fake_gcs() -> Path:
    """The path of the server, built first if it is not there (one to five minutes).

    Several processes may call this at once: each builds apart, the first finished binary stays.

    Raises:
        FakeGcsUnavailable: Go is missing, or it could not fetch or compile the module.
    """
    built = fake_gcs_path()
    if built is not None:
        return built
    go = shutil.which("go")
    if go is None:
        raise FakeGcsUnavailable(
            "fake-gcs-server is built with Go and no 'go' is on the PATH: install Go (https://go.dev/doc/install)"
        )
    directory = _directory()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        command = [go, "install", f"{_PACKAGE}@v{VERSION}"]
        done = subprocess.run(
            command, env={**os.environ, "GOBIN": scratch}, cwd=scratch, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise FakeGcsUnavailable(
                f"{' '.join(command)!r} failed with exit code {done.returncode}:\n{done.stderr[-_ERROR_TAIL:]}"
            )
        return (Path(scratch) / "fake-gcs-server").replace(directory / "fake-gcs-server")


class FakeGcs:
    """The server as a process, on a free port of the loopback. A context manager; may be started again after `stop`.

    Args:
        folder: Where buckets are kept (`buckets/NAME`) and its log (`fake-gcs.log`); what is there is served.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port = _free_port()

    @property
    def address(self) -> str:
        """For STORAGE_EMULATOR_HOST; the same after each start."""
        return f"http://127.0.0.1:{self._port}"

    def bucket(self, name: str) -> Path:
        """The folder of a bucket; an object is a file in it."""
        return self._folder / "buckets" / name

    def make_bucket(self, name: str) -> None:
        """Makes a bucket; the server need not run."""
        self.bucket(name).mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises:
            FakeGcsUnavailable: It is not built, or does not start.
        """
        binary = fake_gcs_path()
        if binary is None:
            raise FakeGcsUnavailable("fake-gcs-server is not built: run 'python -m runners.fake_gcs'")
        log = self._folder / "fake-gcs.log"
        command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(self._port)]
        command += ["-filesystem-root", str(self._folder / "buckets"), "-log-level", "warn"]
        command += ["-public-host", f"127.0.0.1:{self._port}"]
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise FakeGcsUnavailable(f"fake-gcs-server did not start: {log.read_text()[-_ERROR_TAIL:]}")
            time.sleep(_POLL)

    def stop(self) -> None:
        """Kills it; what it was given stays in the folder."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> FakeGcs:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/storage/v1/b?project=any", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _directory() -> Path:
    return tools_folder() / f"fake-gcs-server-{VERSION}"


def main(arguments: Sequence[str]) -> int:
    """Build the server if needed and print its path; the exit code."""
    if arguments:
        print(f"runners.fake_gcs takes no arguments, got {list(arguments)!r}", file=sys.stderr)
        return 2
    try:
        print(install_fake_gcs())
    except FakeGcsUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
