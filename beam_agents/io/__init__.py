"""Where events come from: sources whose elements have ids that are the same after any replay."""

from beam_agents.io.files import Line, LinesRead, ReadLines

__all__ = ["Line", "LinesRead", "ReadLines"]
