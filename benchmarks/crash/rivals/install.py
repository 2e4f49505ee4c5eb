"""The environments of the rivals: made once, with pinned versions, apart from that of the product."""

from __future__ import annotations

import os
import subprocess
import venv
from collections.abc import Mapping
from pathlib import Path

FOLDER_VARIABLE = "BEAM_AGENTS_RIVALS"
"""Names the folder with the environments."""

DEFAULT_FOLDER = "build/rivals"

ENVIRONMENTS = ("agents", "beam")
"""Each has a list of pinned packages beside this file. The two do not agree on protobuf."""


def folder() -> Path:
    """Where the environments are."""
    return Path(os.environ.get(FOLDER_VARIABLE, DEFAULT_FOLDER)).absolute()


def install(target: Path, environments: Mapping[str, Path] | None = None) -> None:
    """Makes the environments in a folder; those that are there are brought to the pinned versions.

    Args:
        target: The folder.
        environments: Other ones than `ENVIRONMENTS`: for each name the list of pinned packages.

    Raises:
        subprocess.CalledProcessError: pip could not install a package.
    """
    if environments is None:
        environments = {name: Path(__file__).with_name(f"{name}.txt") for name in ENVIRONMENTS}
    for name, pins in environments.items():
        venv.create(target / name, symlinks=True, with_pip=True)
        subprocess.run([python_of(target, name), "-m", "pip", "install", "--quiet", "-r", pins], check=True)


def python_of(target: Path, name: str) -> Path:
    """The interpreter of an environment."""
    return target / name / "bin" / "python"
