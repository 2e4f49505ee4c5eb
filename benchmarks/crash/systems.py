"""The systems that are compared."""

from __future__ import annotations

from benchmarks.crash.ours import OURS
from benchmarks.crash.passes import System

SYSTEMS: dict[str, System] = {**OURS}
"""By the name that the table has."""

MOST_SCENARIOS = {"ours-directrunner": 20}
"""Systems that are tried with fewer scenarios, because starting them takes long."""
