"""Names of the objects of a Google Cloud Storage ledger, and the markers by which runs are found.

A name has at most 1,024 bytes, and no part of it more than a file's name may have.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import quote, unquote

from beam_agents.ledger.records import HeadKey, Run, RunKey

IDENTITY = "ledger.json"

_LONGEST_PART = 150
_CUT_PART = 80
_LAST_MICROSECOND = 10**16 - 1


def head_folder(key: HeadKey) -> str:
    """A name of fixed length for a key; that it looks random spreads the load over the store's servers."""
    return _digest(json.dumps(key))[:40]


def entry_name(folder: str, number: int) -> str:
    """An entry of a key's log."""
    return f"log/{folder}/{number:08d}"


def checkpoint_name(folder: str) -> str:
    """What a key had come to, at some entry."""
    return f"heads/{folder}"


def run_name(folder: str, run_id: str) -> str:
    """A closed run."""
    return f"runs/{folder}/{_digest(run_id)[:40]}"


def lease_name(owner: str) -> str:
    """A worker's lease."""
    return f"leases/{_part(owner)}"


def open_folder(scope: str, agent: str) -> str:
    """Where the open runs of an agent are marked."""
    return f"open/{_part(scope)}/{_part(agent)}/"


def closed_folder(scope: str, agent: str) -> str:
    """Where the closed runs of an agent are marked."""
    return f"closed/{_part(scope)}/{_part(agent)}/"


def open_marker(run: Run) -> str:
    """Marks an open run, once for each worker that has it; the oldest runs come first."""
    folder = open_folder(run.key.scope, run.key.agent)
    return f"{folder}{_microseconds(run.opened_at):016d}/{_run_parts(run.key)}/{run.epoch}/{_part(run.owner)}"


def closed_marker(run: Run, closed_at: float) -> str:
    """Marks a closed run; the newest come first."""
    return f"{closed_folder(run.key.scope, run.key.agent)}{newest_first(closed_at)}/{_run_parts(run.key)}"


def newest_first(moment: float) -> str:
    """A time as text that is less the later it is."""
    return f"{_LAST_MICROSECOND - _microseconds(moment):016d}"


class Marker(NamedTuple):
    """What a marker's name says."""

    name: str
    run: RunKey | None
    """`None` when a part was too long for a name; the object has it then."""
    opened_at: float
    """Seconds since 1970; 0 for a closed run's."""
    epoch: int
    owner: str | None
    """`None` when it was too long for a name; empty when the run was let go."""


def read_marker(name: str, scope: str, agent: str) -> Marker:
    """What the name of an open run's or a closed run's marker says."""
    kind, _, _, time, revision, key, run_id, *driver = name.split("/")
    key_text, run_text = _text(key), _text(run_id)
    run = None
    if key_text is not None and run_text is not None:
        run = RunKey(scope, agent, int(revision), key_text, run_text)
    if kind == "closed":
        return Marker(name, run, 0.0, 0, "")
    return Marker(name, run, int(time) / 1_000_000, int(driver[0]), _text(driver[1]))


def _run_parts(key: RunKey) -> str:
    return f"{key.revision}/{_part(key.key)}/{_part(key.run_id)}"


def _part(text: str) -> str:
    """Text as a part of a name; too long a text is cut, and has its digest instead of what was cut off."""
    quoted = quote(text, safe="", errors="surrogatepass").replace(".", "%2E").replace("~", "%7E").replace("%", "=")
    if len(quoted) > _LONGEST_PART:
        return f"{quoted[:_CUT_PART]}!{_digest(text)}"
    return quoted or "!"


def _text(part: str) -> str | None:
    """The text of a part, `None` if it was cut."""
    if part == "!":
        return ""
    return None if "!" in part else unquote(part.replace("=", "%"), errors="surrogatepass")


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
