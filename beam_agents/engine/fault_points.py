"""Named places in the life of a run at which a test ends the worker process, as a crash would."""

from __future__ import annotations

import json
import os
from typing import Literal, TypeAlias, get_args

from beam_agents.errors import ConfigurationError
from beam_agents.ledger.records import Effect, RunKey

FaultPoint: TypeAlias = Literal[
    "after_intent", "before_call", "after_call", "after_outcome", "after_close", "in_parallel"
]
"""A place where a process may die.

`after_intent`: an effect's intent is recorded. `before_call`: the model or the tool is about to be called.
`after_call`: it has answered, its outcome is not recorded. `after_outcome`: it is, the run is not closed.
`after_close`: the run is closed, nothing is emitted. `in_parallel`: an outcome is recorded while a call beside it is
in flight.
"""

FAULT_POINTS: tuple[FaultPoint, ...] = get_args(FaultPoint)
"""All of them."""

FAULT_VARIABLE = "BEAM_AGENTS_FAULT"
"""Environment variable, for tests: `after_call:3` ends the process when it is there for the third time,
`after_call:each:FILE` each time that it is there for an effect (or a run) that FILE does not have yet. With
`after_call@tool` instead of `after_call` only tool calls count, with `@model` only model requests."""

CRASH_STATUS = 70
"""With which the process ends."""


class FaultPoints:
    """Ends the process at one fault point, or does nothing.

    Args:
        setting: As in `FAULT_VARIABLE`; empty for nothing.

    Attributes:
        point: Where the process is to end; empty for nowhere.

    Raises:
        ConfigurationError: The setting is neither.
    """

    def __init__(self, setting: str) -> None:
        where, _, rest = setting.partition(":")
        point, at, kind = where.partition("@")
        count, _, file = rest.partition(":")
        counted = not file and count.isdecimal() and int(count) > 0
        if setting and (
            point not in FAULT_POINTS
            or (at and kind not in ("model", "tool"))
            or not (counted or (count == "each" and file))
        ):
            raise ConfigurationError(
                f"{FAULT_VARIABLE}={setting!r} must be POINT:TIME, the time counted from 1, or POINT:each:FILE; "
                f"POINT is one of {', '.join(FAULT_POINTS)}, with @model or @tool behind it or without"
            )
        self.point = point
        self._kind = kind
        self._left = int(count) if counted else 0
        self._file = file

    @classmethod
    def from_environment(cls) -> FaultPoints:
        """What the environment asks for."""
        return cls(os.environ.get(FAULT_VARIABLE, ""))

    def reached(self, point: FaultPoint, run: RunKey, effect: Effect | None = None) -> None:
        """Ends the process if it is to end here and now.

        Args:
            point: Where it is.
            run: The run that is there.
            effect: The effect that is; `None` for the run itself.
        """
        if point != self.point or (effect is not None and self._kind not in ("", effect.kind)):
            return
        if self._file:
            if self._note(json.dumps([run.key, run.run_id, effect.path if effect is not None else ""])):
                os._exit(CRASH_STATUS)
        else:
            self._left -= 1
            if self._left == 0:
                os._exit(CRASH_STATUS)

    def _note(self, place: str) -> bool:
        """Whether the file did not have the place yet; now it has."""
        with open(self._file, "a+") as file:
            file.seek(0)
            new = place not in file.read().splitlines()
            if new:
                file.write(f"{place}\n")
        return new
