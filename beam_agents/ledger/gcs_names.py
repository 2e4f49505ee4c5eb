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


def horizon_name(scope: str, agent: str) -> str:
    """How far a use of an agent was pruned."""
    return f"horizons/{_part(scope)}/{_part(agent)}"


def log_folder(folder: str) -> str:
    """Where the entries of a key's log are."""
    return f"log/{folder}/"


def entries_to(number: int) -> str:
    """Where in a key's log the entries up to this one end."""
    return f"{number + 1:08d}"


# ---- markers ----


def marker_folder(kind: str, scope: str | None = None, agent: str | None = None) -> str:
    """Where the markers of a kind are: `open`, `closed` or `tombstones`; without a scope, those of all scopes."""
    parts = [_part(text) for text in ((scope, agent) if scope is not None else ()) if text is not None]
    return "/".join([kind, *parts, ""])


def open_marker(run: Run) -> str:
    """Marks an open run, once for each worker that has it; the oldest runs come first."""
    return f"{_marker('open', run.key, oldest_first(run.opened_at))}/{run.epoch}/{_part(run.owner)}"


def closed_marker(run: Run, closed_at: float) -> str:
    """Marks a closed run; the newest come first."""
    came_to = "doubtful" if run.doubtful else "failed" if run.reason is not None else "ended"
    return f"{_marker('closed', run.key, newest_first(closed_at))}/{oldest_first(run.opened_at)}/{came_to}"


def tombstone_marker(run: Run, closed_at: float) -> str:
    """Marks the tombstone of a run; those closed first come first."""
    return _marker("tombstones", run.key, oldest_first(closed_at))


def oldest_first(moment: float) -> str:
    """A time as text that is less the earlier it is."""
    return f"{_microseconds(moment):016d}"


def newest_first(moment: float) -> str:
    """A time as text that is less the later it is."""
    return f"{_LAST_MICROSECOND - _microseconds(moment):016d}"


class Marker(NamedTuple):
    """What a marker's name says."""

    name: str
    run: RunKey | None
    """`None` when a part was too long for a name; the object has it then."""
    opened_at: float = 0.0
    """Seconds since 1970; 0 for a tombstone's."""
    closed_at: float = 0.0
    """Seconds since 1970; 0 for an open run's."""
    epoch: int = 0
    """Of an open run."""
    owner: str | None = ""
    """Of an open run; `None` when it was too long for a name, empty when the run was let go."""
    came_to: str = ""
    """Of a closed run: `ended`, `failed` or `doubtful`, as it was at its close."""


def read_marker(name: str) -> Marker:
    """What the name of a marker says."""
    kind, scope, agent, time, revision, key, run_id, *rest = name.split("/")
    texts = [_text(part) for part in (scope, agent, key, run_id)]
    run = None
    if None not in texts:
        known = [text or "" for text in texts]
        run = RunKey(known[0], known[1], int(revision), known[2], known[3])
    if kind == "tombstones":
        return Marker(name, run, closed_at=int(time) / 1_000_000)
    if kind == "closed":
        closed_at = (_LAST_MICROSECOND - int(time)) / 1_000_000
        return Marker(name, run, int(rest[0]) / 1_000_000, closed_at, came_to=rest[1])
    return Marker(name, run, int(time) / 1_000_000, epoch=int(rest[0]), owner=_text(rest[1]))


def sweep_folder(scope: str, agent: str) -> str:
    """Where it is noted which logs are to be swept."""
    return f"sweeps/{_part(scope)}/{_part(agent)}/"


def sweep_name(key: HeadKey, moment: float, number: int) -> str:
    """Notes that a key's log had a checkpoint at this entry at that time; the oldest come first."""
    return f"{sweep_folder(key.scope, key.agent)}{oldest_first(moment)}/{head_folder(key)}/{number}"


def read_sweep(name: str) -> tuple[str, int]:
    """The log that is to be swept and the last entry that may go."""
    *_, folder, number = name.split("/")
    return folder, int(number)


def _marker(kind: str, key: RunKey, time: str) -> str:
    parts = f"{key.revision}/{_part(key.key)}/{_part(key.run_id)}"
    return f"{marker_folder(kind, key.scope, key.agent)}{time}/{parts}"


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
