"""Processes that outlive the program which started them.

A process is known by its id and the moment it started: ids are given out again, and a signal must never reach a
stranger.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_PROC = Path("/proc")
_POLL = 0.05


class ManagedProcess(BaseModel):
    """A process of ours, perhaps started by an earlier program."""

    model_config = ConfigDict(frozen=True)

    name: str
    """What it is, also the name of its log file."""
    pid: int
    started: str
    """When it started, as the system tells it: only good to be compared."""

    def alive(self) -> bool:
        """Whether it still runs."""
        with contextlib.suppress(ChildProcessError):
            # If it was started here it stays a zombie until it is asked for.
            os.waitpid(self.pid, os.WNOHANG)
        return _started(self.pid) == self.started

    def kill(self) -> None:
        """End it at once (SIGKILL) and wait until it is gone."""
        self.signal(signal.SIGKILL)
        _wait([self], seconds=30)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def start_process(name: str, command: Sequence[str], *, output: Path, environment: Mapping[str, str]) -> ManagedProcess:
    """Start `command` in a session of its own, so that it outlives this program and the signals to its terminal.

    Args:
        name: What it is.
        command: The program, by its path, and its arguments.
        output: The file that its output and errors are added to.
        environment: All of its environment variables.
    """
    pid = os.posix_spawn(
        command[0],
        list(command),
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inherited()),
        ],
        setsid=True,
    )
    return ManagedProcess(name=name, pid=pid, started=_started(pid) or "")


def stop_processes(processes: Iterable[ManagedProcess], *, seconds: float = 10) -> None:
    """Ask all to end (SIGTERM), and kill (SIGKILL) those that have not after `seconds`."""
    left = [process for process in processes if process.alive()]
    for process in left:
        process.signal(signal.SIGTERM)
    for process in _wait(left, seconds=seconds):
        process.kill()


def find_processes(argument: str) -> list[ManagedProcess]:
    """The running processes which have exactly `argument` on their command line."""
    found = []
    for pid, arguments in _command_lines():
        if argument in arguments and pid != os.getpid():
            started = _started(pid)
            if started is not None:
                found.append(ManagedProcess(name=argument, pid=pid, started=started))
    return found


def _inherited() -> list[int]:
    """Open files that this program was given, for example a lock; who waits for them would wait for the new process."""
    kept = []
    for descriptor in (int(entry) for entry in os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):
            if descriptor > 2 and os.get_inheritable(descriptor):
                kept.append(descriptor)
    return kept


def _wait(processes: Sequence[ManagedProcess], *, seconds: float) -> list[ManagedProcess]:
    until = time.monotonic() + seconds
    while left := [process for process in processes if process.alive()]:
        if time.monotonic() > until:
            break
        time.sleep(_POLL)
    return left


def _started(pid: int) -> str | None:
    """When a process started; `None` if it does not run (any more)."""
    if _PROC.joinpath("self").exists():
        try:
            # The name in brackets may have anything in it, brackets and spaces too.
            fields = _PROC.joinpath(str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    state, _, started = _ps("state=,lstart=", pid).partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def _command_lines() -> Iterator[tuple[int, list[str]]]:
    if _PROC.joinpath("self").exists():
        for entry in _PROC.iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    yield int(entry.name), entry.joinpath("cmdline").read_text(errors="replace").split("\0")
    else:
        for line in _ps("pid=,args=").splitlines():
            pid, *arguments = line.split()
            yield int(pid), arguments


def _ps(columns: str, pid: int | None = None) -> str:
    """What `ps` says, where there is no /proc."""
    which = ["-A"] if pid is None else ["-p", str(pid)]
    done = subprocess.run(["ps", "-ww", "-o", columns, *which], capture_output=True, text=True, check=False)
    return done.stdout.strip()
