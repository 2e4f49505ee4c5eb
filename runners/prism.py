"""Prism, Beam's local portable runner: build its binary and name the options a pipeline needs to run on it.

Beam downloads Prism from its release page by itself. `python -m runners.prism` is for machines that reach the Go module
proxy but not that page: it builds the binary of the installed Beam version with `go install` and prints its path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path

_PACKAGE = "github.com/apache/beam/sdks/v2/go/cmd/prism"
_PROJECT = Path(__file__).resolve().parent.parent
_ERROR_TAIL = 2_000


class PrismUnavailable(RuntimeError):
    """Prism is not built and cannot be. The message says what to install."""


def prism_path() -> Path | None:
    """Where the Prism of the installed Beam version was built, or `None` when `install_prism` was not run yet."""
    path = _directory() / "prism"
    return path if os.access(path, os.X_OK) else None


def install_prism() -> Path:
    """The path of the installed Beam version's Prism, built first if it is not there (about two minutes).

    Several processes may call this at once: each builds apart, the first finished binary stays.

    Raises:
        PrismUnavailable: Go is missing, or it could not fetch or compile the module.
    """
    built = prism_path()
    if built is not None:
        return built
    go = shutil.which("go")
    if go is None:
        raise PrismUnavailable(
            "Prism is built with Go and no 'go' is on the PATH: install Go (https://go.dev/doc/install), "
            "or give Beam a ready binary with --prism_location"
        )
    directory = _directory()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        command = [go, "install", f"{_PACKAGE}@v{_beam_version()}"]
        done = subprocess.run(
            command, env={**os.environ, "GOBIN": scratch}, cwd=scratch, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise PrismUnavailable(
                f"{' '.join(command)!r} failed with exit code {done.returncode}:\n{done.stderr[-_ERROR_TAIL:]}"
            )
        return (Path(scratch) / "prism").replace(directory / "prism")


def prism_options(location: Path | str | None = None, *, streaming: bool = True) -> list[str]:
    """The pipeline arguments for a run on Prism.

    Args:
        location: The binary; by default the one `install_prism` built. When there is none, Beam downloads its own.
        streaming: Whether the pipeline has an unbounded source.
    """
    options = ["--runner=PrismRunner"]
    location = location or prism_path()
    if location is not None:
        # Otherwise Beam downloads the release binary.
        options.append(f"--prism_location={location}")
    # The DoFns run in threads of the submitting process: no Docker, and tests see what they did.
    options.append("--environment_type=LOOPBACK")
    # Prism's own log repeats every bundle at `info`.
    options.append("--prism_log_level=warn")
    if streaming:
        options.append("--streaming")
    return options


def _beam_version() -> str:
    return installed_version("apache-beam")


def _directory() -> Path:
    return _PROJECT / ".tools" / f"prism-{_beam_version()}"


def main(arguments: Sequence[str]) -> int:
    """Build Prism if needed and print its path; the exit code."""
    if arguments:
        print(f"runners.prism takes no arguments, got {list(arguments)!r}", file=sys.stderr)
        return 2
    try:
        print(install_prism())
    except PrismUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
