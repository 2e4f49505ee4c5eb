"""Apache Flink Agents beside: its events per second in the same workload, in an environment of its own.

    python -m benchmarks.load.rivals_flink_agents install [FOLDER]

makes the environment (1.7 GB), with the release whose wheel has its jars in it. It needs Java 17. What is favourable to
it stands in `rivals/flink_agents_job.py`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks.crash.rivals.install import FOLDER_VARIABLE, folder, python_of
from benchmarks.load.job import BURSTS
from benchmarks.load.parts import LOG
from benchmarks.load.stamps import Stamps

ENVIRONMENT = "flink-agents"
THREADS = 16
"""For calls that are answered at once, where 64 do no better; for calls that last, give as many as there are events."""
WARM_EVENTS = 100

_ROOT = Path(__file__).resolve().parents[2]
_PINS = Path(__file__).parent / "rivals" / f"{ENVIRONMENT}.txt"
_PROGRAM = "benchmarks.load.rivals.flink_agents_job"
_OUTPUTS = "out"
_START_SECONDS = 300.0
_SECONDS = 600.0
_POLL = 0.1


def install(target: Path) -> None:
    """Makes the environment in a folder, or brings it to the pinned versions.

    Raises:
        subprocess.CalledProcessError: pip could not install a package.
    """
    venv.create(target / ENVIRONMENT, symlinks=True, with_pip=True)
    python = python_of(target, ENVIRONMENT)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", _PINS], check=True)


def missing() -> str:
    """Why it cannot be measured here; empty if it can."""
    python = python_of(folder(), ENVIRONMENT)
    if not python.exists():
        return f"{python} is missing: python -m benchmarks.load.rivals_flink_agents install {folder()}"
    if shutil.which("java") is None:
        return "there is no java on the PATH"
    return ""


def events_per_s(server_url: str, events: int, *, threads: int = THREADS) -> float | None:
    """How many events a warm job handles in a second, from the first before the agent to the last behind it.

    Args:
        server_url: Base URL of the chat server, `http://127.0.0.1:PORT/v1`.
        events: That come at once.
        threads: For calls.

    Returns:
        `None` if it is not installed here; the log says why.

    Raises:
        RuntimeError: The job failed; the message has the end of its log.
        TimeoutError: It did not come to its end.
    """
    why = missing()
    if why:
        LOG.warning("no figures of Apache Flink Agents: %s", why)
        return None
    with _job(server_url, threads) as job:
        job.run(WARM_EVENTS, _START_SECONDS)
        return events / job.run(events, _SECONDS)


class _Job:
    """A job that waits for bursts."""

    def __init__(self, out: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self._out = out
        self._process = process
        self._log = log
        self._stamps = Stamps(out)
        self._bursts = 0
        self._given = 0

    def run(self, events: int, seconds: float) -> float:
        """Gives it a burst and waits until all of it came out; the seconds."""
        burst = f"b{self._bursts:03}"
        self._bursts += 1
        self._given += events
        hidden = self._out / BURSTS / f".{burst}"
        hidden.write_text(f"{burst} {events}\n")
        hidden.rename(hidden.with_name(burst))
        until = time.monotonic() + seconds
        while len(ended := self._stamps.ended(_OUTPUTS)) < self._given:
            if self._process.poll() is not None:
                raise RuntimeError(f"Apache Flink Agents ended with {self._process.returncode}:\n{self._told()}")
            if time.monotonic() > until:
                came = len(ended) + events - self._given
                raise TimeoutError(f"{came} of {events} events within {seconds:g} s:\n{self._told()}")
            time.sleep(_POLL)
        return max(ended.values()) - self._stamps.begun(burst)

    def _told(self) -> str:
        """The end of its log, without the frames of Java's traces, which are all that a long one ends with."""
        lines = self._log.read_text(errors="replace").splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("\tat "))[-4_000:]


@contextmanager
def _job(server_url: str, threads: int) -> Iterator[_Job]:
    """The job in a session of its own, with its JVM and its workers in it."""
    python = python_of(folder(), ENVIRONMENT)
    packages = next((folder() / ENVIRONMENT / "lib").glob("python*/site-packages"))
    with ExitStack() as stack:
        # The JVM may be writing its log yet when it is killed.
        scratch = tempfile.TemporaryDirectory(prefix="flink-agents-", ignore_cleanup_errors=True)
        out = Path(stack.enter_context(scratch))
        (out / BURSTS).mkdir()
        log = out / "log.txt"
        process = subprocess.Popen(
            [python, "-m", _PROGRAM, f"--out={out}", f"--server={server_url}", f"--threads={threads}"],
            cwd=_ROOT,
            # The interpreter in the JVM looks for modules and `python3` here, and so do the workers.
            env=os.environ
            | {
                "PYTHONPATH": f"{_ROOT}{os.pathsep}{packages}",
                "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONWARNINGS": "ignore",
                "FLINK_LOG_DIR": str(out),
            },
            stdin=subprocess.DEVNULL,
            stdout=stack.enter_context(log.open("wb")),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stack.callback(_end, process)
        yield _Job(out, process, log)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a session, whose leader may be gone already."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load.rivals_flink_agents",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("install", help="make the environment")
    command.add_argument("folder", nargs="?", type=Path, default=folder(), help=f"${FOLDER_VARIABLE} by default")
    target = parser.parse_args(arguments).folder.absolute()
    install(target)
    print(f"installed; measure with {FOLDER_VARIABLE}={target}")


if __name__ == "__main__":
    main()
