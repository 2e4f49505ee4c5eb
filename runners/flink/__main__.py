"""`python -m runners.flink` gets what a Flink cluster is made of and prints where it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runners.flink.errors import FlinkUnavailable
from runners.flink.install import install_flink, install_job_server
from runners.flink.java import find_java


def main(arguments: Sequence[str]) -> int:
    """Install Flink and the job server if needed, print their paths; the exit code."""
    if arguments:
        print(f"runners.flink takes no arguments, got {list(arguments)!r}", file=sys.stderr)
        return 2
    try:
        find_java()
        print(install_flink())
        print(install_job_server())
    except FlinkUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
