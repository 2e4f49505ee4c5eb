"""Crashes at named places: a worker process of a test ends there at once, as if it had been killed."""

from __future__ import annotations

import os
from typing import Literal, TypeAlias

from beam_agents.engine.fault_points import CRASH_STATUS, FAULT_POINTS, FAULT_VARIABLE, FaultPoint, FaultPoints

Kind: TypeAlias = Literal["model", "tool"]
"""Of effects."""

__all__ = ["CRASH_STATUS", "FAULT_POINTS", "FaultPoint", "crash_at", "crash_at_each"]


def crash_at(point: FaultPoint, *, time: int = 1, kind: Kind | None = None) -> dict[str, str]:
    """Environment variables for a worker process that is to crash once: `env=os.environ | crash_at("after_call")`.

    The process ends with `CRASH_STATUS`. Never set them where the tests themselves run.

    Args:
        point: Where; see `FaultPoint`.
        time: At the how-many-th time, counted from 1 for each use of an agent in the process.
        kind: Whether only model requests or only tool calls count; both by default.

    Raises:
        ConfigurationError: There is no such point, no such time or no such kind.
    """
    return _variables(point, kind, str(time))


def crash_at_each(point: FaultPoint, remembered: str | os.PathLike[str], *, kind: Kind | None = None) -> dict[str, str]:
    """Environment variables for worker processes that are started until they end by themselves: they crash at each
    effect's (or run's) fault point once.

    Args:
        point: Where; see `FaultPoint`.
        remembered: A file that outlives the processes, for the places where they have crashed, one a line.
        kind: Whether they crash only at model requests or only at tool calls; at both by default.

    Raises:
        ConfigurationError: There is no such point or no such kind.
    """
    return _variables(point, kind, f"each:{os.path.abspath(remembered)}")


def _variables(point: FaultPoint, kind: Kind | None, when: str) -> dict[str, str]:
    setting = f"{point}{f'@{kind}' if kind is not None else ''}:{when}"
    FaultPoints(setting)  # checked here, where a mistake is made, and not in a worker's log
    return {FAULT_VARIABLE: setting}
