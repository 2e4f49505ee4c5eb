"""The folder in which what runners need is kept, and how it gets there."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOOLS_VARIABLE = "BEAM_AGENTS_TOOLS"

_CHECKOUT = Path(__file__).resolve().parents[1]
_ERROR_TAIL = 3_000


class ToolUnavailable(RuntimeError):
    """Something is not there and cannot be had. The message says what to do."""


def tools_folder() -> Path:
    """Where downloaded tools are kept: `.tools` of a checkout, else `~/.cache/beam-agents`, or what the environment
    variable BEAM_AGENTS_TOOLS names."""
    named = os.environ.get(TOOLS_VARIABLE)
    if named:
        return Path(named).expanduser().resolve()
    if _CHECKOUT.joinpath("pyproject.toml").is_file():
        return _CHECKOUT / ".tools"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "beam-agents"


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Keeps other processes out. The lock ends with its process, however that ends.

    Raises:
        ToolUnavailable: Nothing can be written to the folder.
    """
    folder = tools_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f".{name}.lock").open("w")
    except OSError as error:
        raise ToolUnavailable(
            f"Nothing can be written to {str(folder)!r} ({error}): let {TOOLS_VARIABLE} name another folder"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """A folder beside `target`, of which nothing stays. What a killed installation left is removed first."""
    folder = target.with_name(f".{target.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move(made: Path, target: Path) -> Path:
    """Puts a folder in the place of another one."""
    shutil.rmtree(target, ignore_errors=True)
    return made.replace(target)


def run(command: list[str], *, folder: Path, java: Path | None = None) -> None:
    """Runs a program to its end.

    Args:
        command: The program and its arguments.
        folder: Where it runs.
        java: The `java` whose home it is told, if it is not told of another one.

    Raises:
        ToolUnavailable: It failed; the message has the end of what it said.
    """
    environment = dict(os.environ)
    if java is not None:
        environment.setdefault("JAVA_HOME", str(java.resolve().parents[1]))
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ToolUnavailable(
            f"{' '.join(command)!r} failed with exit code {done.returncode}:\n{done.stdout[-_ERROR_TAIL:].strip()}"
        )


def find_maven() -> str:
    """The `mvn` on the PATH.

    Raises:
        ToolUnavailable: There is none.
    """
    maven = shutil.which("mvn")
    if maven is None:
        raise ToolUnavailable(
            "Java parts are fetched with Maven, and no 'mvn' is on the PATH: install Maven 3.6 or newer "
            "(https://maven.apache.org/install.html)"
        )
    return maven
