"""What a system is given to do, and what it says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pass:
    """One system, one scenario, one fault point."""

    url: str
    """Of the place on the server where the scenario was just begun."""
    scenario: str
    fault_point: str
    """A name of `beam_agents.testing.FAULT_POINTS`, or `none` for a run that is not interrupted."""
    folder: Path
    """An empty folder, for what has to survive."""


@dataclass(frozen=True)
class Passed:
    """How a pass went; what it came to, the server says."""

    crashes: int
    """How often its process died."""
    in_doubt: int = 0
    """Runs that ended without knowing what a call came to, and said so."""
    failed: int = 0
    """Runs that ended without an answer, those in doubt included."""


System = Callable[[Pass], Passed]
"""Takes the scenario to its end: its process dies at each boundary of the pass's fault point once, and is started
again.

Raises:
    Exception: The pass could not be made; the yardstick stops.
"""
