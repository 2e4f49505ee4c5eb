"""The environments of the frameworks that are compared: one for each, with pinned versions.

    python -m benchmarks.comparison.install [FOLDER]

The folder is that of the crash yardstick's rivals; BEAM_AGENTS_RIVALS names another than `build/rivals`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.crash.rivals.install import FOLDER_VARIABLE, folder, install, python_of

FRAMEWORKS = ("langgraph", "crewai", "autogen")
"""Each has a list of pinned packages in `rivals`, and an environment `comparison-NAME`."""

_PREFIX = "comparison-"


def python_for(framework: str) -> Path:
    """The interpreter of a framework's environment.

    Raises:
        FileNotFoundError: It is not installed.
    """
    python = python_of(folder(), _PREFIX + framework)
    if not python.exists():
        raise FileNotFoundError(f"{str(python)!r} is missing: python -m benchmarks.comparison.install {folder()}")
    return python


def main() -> None:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", nargs="?", type=Path, default=folder(), help=f"${FOLDER_VARIABLE} by default")
    target = made.parse_args().folder.absolute()
    pins = Path(__file__).parent / "rivals"
    install(target, {_PREFIX + name: pins / f"{name}.txt" for name in FRAMEWORKS})
    print(f"installed; run the comparison with {FOLDER_VARIABLE}={target}")


if __name__ == "__main__":
    main()
