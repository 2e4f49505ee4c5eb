"""Starts a Python worker on a Flink cluster without containers.

    beam-agents-worker --id=ID --provision_endpoint=HOST:PORT

is what a TaskManager runs for a pipeline with `--environment_type=PROCESS` and this command in its
`--environment_config`.

A TaskManager whose job is stopped asks its workers to end and kills them two seconds later, with the calls that they
have in flight: those would be made again, or be in doubt. So what the TaskManager starts and kills is this process,
which does nothing; the worker is its child, and stays until what is in flight is recorded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

_HARNESS = Path(__file__).with_name("harness.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker until its TaskManager is done with it; the exit code."""
    # At the end of this process the pipe is closed, and a worker that was not told to let go dies, too.
    told, tell = os.pipe()

    def let_go(number: int, frame: FrameType | None) -> NoReturn:
        os.write(tell, b".")
        os._exit(0)

    given = sys.argv[1:] if arguments is None else arguments
    # By its path: the user may have a module of the same name.
    command = [sys.executable, "-P", str(_HARNESS), *given, f"--told={told}"]
    with subprocess.Popen(command, pass_fds=[told]) as worker:
        os.close(told)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, let_go)
        code = worker.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
