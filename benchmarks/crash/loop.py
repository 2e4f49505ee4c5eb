"""A process that is started again each time it dies, until it ends by itself: forked, so that it starts warm."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any

from beam_agents.testing import CRASH_STATUS

MOST_CRASHES = 200
"""In one pass; the longest scenario has some thirty boundaries."""


def until_it_ends(child: Callable[[int], Any]) -> tuple[int, Any]:
    """Forks and runs `child` again and again, as long as it dies as at a fault point.

    Args:
        child: Gets the number of crashes so far, and returns what JSON can hold.

    Returns:
        The number of crashes, and what the child returned in the end.

    Raises:
        RuntimeError: It raised, died otherwise, or does not come to an end.
    """
    for crashes in range(MOST_CRASHES):
        status, said = _forked(child, crashes)
        if status == 0:
            return crashes, json.loads(said)
        if status != CRASH_STATUS:
            raise RuntimeError(f"the child ended with status {status} after {crashes} crashes:\n{said}")
    raise RuntimeError(f"the child has crashed {MOST_CRASHES} times and does not come to an end")


def _forked(child: Callable[[int], Any], crashes: int) -> tuple[int, str]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        status = 1
        try:
            said = json.dumps(child(crashes))
            status = 0
        except BaseException:
            said = traceback.format_exc()
        with os.fdopen(writing, "w") as out:
            out.write(said)
        os._exit(status)  # nothing of the parent's is closed or flushed here
    os.close(writing)
    with os.fdopen(reading) as out:
        said = out.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said
