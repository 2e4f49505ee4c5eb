"""The environments of the rivals: made once, with pinned versions, apart from that of the product."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

FOLDER_VARIABLE = "BEAM_AGENTS_RIVALS"
"""Names the folder with the environments."""

DEFAULT_FOLDER = "build/rivals"

ENVIRONMENTS = ("agents", "beam")
"""Each has a list of pinned packages beside this file. The two do not agree on protobuf."""


def folder() -> Path:
    """Where the environments are."""
    return Path(os.environ.get(FOLDER_VARIABLE, DEFAULT_FOLDER)).absolute()


def install(target: Path) -> None:
    """Makes the environments in a folder; those that are there are brought to the pinned versions.

    Raises:
        subprocess.CalledProcessError: pip could not install a package.
    """
    for name in ENVIRONMENTS:
        venv.create(target / name, symlinks=True, with_pip=True)
        pins = Path(__file__).with_name(f"{name}.txt")
        subprocess.run([python_of(target, name), "-m", "pip", "install", "--quiet", "-r", pins], check=True)


def python_of(target: Path, name: str) -> Path:
    """The interpreter of an environment."""
    return target / name / "bin" / "python"
