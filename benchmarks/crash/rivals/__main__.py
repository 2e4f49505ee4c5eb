"""Makes the environments of the rivals.

python -m benchmarks.crash.rivals install [FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.crash.rivals.install import FOLDER_VARIABLE, folder, install


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crash.rivals", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("install", help="make the environments of the rivals")
    command.add_argument("folder", nargs="?", type=Path, default=folder(), help=f"${FOLDER_VARIABLE} by default")
    target = parser.parse_args().folder.absolute()
    install(target)
    print(f"installed; run the yardstick with {FOLDER_VARIABLE}={target}")


if __name__ == "__main__":
    main()
