"""How Python runs in a worker process."""

from __future__ import annotations

import gc
import sys

_HIGHEST_DEFAULT = 2_000
"""New objects after which the Pythons of today look for garbage, at most."""

_SELDOM = 100_000, 20, 50

_DEFAULT_INTERVAL = 0.005
_INTERVAL = 0.0005


def prepare_interpreter() -> None:
    """Sets Python up for many runs, where nobody has chosen otherwise.

    Cyclic garbage is looked for less often: a worker holds many thousands of objects that live as long as their runs,
    and makes hundreds for each step; to walk them again and again was a quarter of the engine's time. And threads
    take turns more often: those that carry a runner's state and data do little each time, and waited behind the event
    loop for longer than their work takes.
    """
    if 0 < gc.get_threshold()[0] <= _HIGHEST_DEFAULT:
        gc.freeze()
        gc.set_threshold(*_SELDOM)
    if sys.getswitchinterval() >= _DEFAULT_INTERVAL:
        sys.setswitchinterval(_INTERVAL)
