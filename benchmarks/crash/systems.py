"""The systems that are compared."""

from __future__ import annotations

from benchmarks.crash.ours import OURS
from benchmarks.crash.passes import System
from benchmarks.crash.rivals.install import ENVIRONMENTS, folder, python_of
from benchmarks.crash.rivals.systems import RIVALS

SYSTEMS: dict[str, System] = {**OURS, **RIVALS}
"""By the name that the table has."""

MOST_SCENARIOS = {"ours-directrunner": 20}
"""Systems that are tried with fewer scenarios, because starting them takes long."""


def installed() -> list[str]:
    """The systems that can be tried here: the rivals have to be installed first."""
    here = all(python_of(folder(), name).exists() for name in ENVIRONMENTS)
    return list(SYSTEMS if here else OURS)
