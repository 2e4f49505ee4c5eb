"""The process that a TaskManager starts and kills, and the worker behind it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = """
import os, sys
told = int(next(a for a in sys.argv if a.startswith("--told=")).partition("=")[2])
print("up", os.getpid(), flush=True)
if "--id=leaves" in sys.argv:
    sys.exit(7)
print("told" if os.read(told, 1) else "not told", flush=True)
"""

RUN = """
import sys
from pathlib import Path
from runners.flink import worker
worker._HARNESS = Path(sys.argv.pop(1))
sys.exit(worker.main())
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    path = tmp_path / "harness.py"
    path.write_text(FAKE)
    return path


def start(fake: Path, name: str = "stays") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(fake), f"--id={name}", "--provision_endpoint=localhost:1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "code", "says"), [(signal.SIGTERM, 0, "told"), (signal.SIGKILL, -signal.SIGKILL, "not told")]
)
def test_a_worker_outlives_the_process_that_was_asked_to_end_but_not_one_that_was_killed(
    fake: Path, number: signal.Signals, code: int, says: str
) -> None:
    with start(fake) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline().split()[1])
        assert worker != process.pid
        process.send_signal(number)
        assert process.wait(30) == code
        assert process.stdout.read() == f"{says}\n"  # to its end: the worker has gone


def test_a_worker_that_was_killed_ends_the_process_before_it(fake: Path) -> None:
    with start(fake) as process:
        assert process.stdout is not None
        os.kill(int(process.stdout.readline().split()[1]), signal.SIGKILL)
        assert process.wait(30) == 128 + signal.SIGKILL


def test_the_exit_code_is_the_worker_s(fake: Path) -> None:
    with start(fake, "leaves") as process:
        assert process.wait(30) == 7
