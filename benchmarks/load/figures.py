"""What is written and printed: the figures of each runner, and of the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("beam-agents", "apache-beam", "openai", "aiohttp", "pydantic")
REQUIRED = (
    "events_per_s_over_bare",
    "over_ideal_400_over_bare",
    "over_ideal_2000_over_bare",
    "max_in_flight_2000",
    "events_per_s_over_flink_agents",
)
"""Names that each runner has in `bench.json`, with null where the part was not measured."""


def machine() -> dict[str, Any]:
    """Where and with what it is measured."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def load() -> list[float]:
    """The load average over 1, 5 and 15 minutes."""
    return [round(each, 2) for each in os.getloadavg()]


def table(runners: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as text, a column for each runner; without the single measurements."""
    names = list(dict.fromkeys(name for figures in runners.values() for name in figures if not name.endswith("_all")))
    width = max(map(len, names), default=0)
    lines = [f"{'':<{width}}" + "".join(f" {runner:>10}" for runner in runners)]
    for name in names:
        lines.append(f"{name:<{width}}" + "".join(f" {_cell(figures.get(name)):>10}" for figures in runners.values()))
    return "\n".join(lines)


def tables(bench: Mapping[str, Any], groups: Iterable[Sequence[str]]) -> str:
    """The objects of `bench.json` as text: a table for each group of names, a column for each object."""
    return "\n\n".join(table({name: bench[name] for name in group}) for group in groups if group)


def rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures to four digits behind the point."""
    return {name: _round(value) for name, value in figures.items()}


def _round(value: Any) -> Any:
    if isinstance(value, list):
        return [_round(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return str(value)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
