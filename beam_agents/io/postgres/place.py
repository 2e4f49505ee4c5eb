"""How far a source has come in a database's log: what the runner's checkpoint keeps."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple, Self

from beam_agents.errors import BeamAgentsError
from beam_agents.stored import Stored


def lsn_text(lsn: int) -> str:
    """A place in the log as PostgreSQL writes it: `16/B374D848`."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    """A place in the log as a number."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


class Place(NamedTuple):
    """How far a source has come."""

    system: str
    """The server's identifier, which each `initdb` makes."""
    lsn: int
    """Each transaction that was committed before is done."""
    commit: int = 0
    """The transaction that is done in part, by the LSN of its commit; 0 if there is none."""
    done: int = 0
    """How many changes of it."""
    seen: str = ""
    """The transactions that the tables' first reading saw (`pg_snapshot`): their changes are none any more."""
    until: int = 0
    """From here on no transaction is among them."""
    table: str = ""
    """The table that is being read; empty when all have been."""
    key: tuple[str, ...] = ()
    """The last row of it that was read."""


class ChangesPosition(Stored):
    """A `Place` as it is stored, with LSNs as PostgreSQL writes them."""

    system: str
    lsn: str
    commit: str = ""
    done: int = 0
    seen: str = ""
    until: str = ""
    table: str = ""
    key: tuple[str, ...] = ()

    @classmethod
    def of(cls, place: Place) -> Self:
        """A place to be stored."""
        lsns = {name: lsn_text(value) for name in ("lsn", "commit", "until") if (value := getattr(place, name))}
        return cls(**(place._asdict() | {"commit": "", "until": ""} | lsns))

    def place(self) -> Place:
        """The place that was stored."""
        lsns = {name: lsn_number(text) if (text := getattr(self, name)) else 0 for name in ("lsn", "commit", "until")}
        return Place(**(self.model_dump(exclude={"schema_version"}) | lsns | {"key": self.key}))


class Seen:
    """The transactions that a snapshot sees.

    Args:
        text: A `pg_snapshot`: `xmin:xmax:xid,xid`, with 64 bits for each id.
    """

    def __init__(self, text: str) -> None:
        first, end, open_ones = text.split(":")
        self._first = int(first)
        self._end = int(end)
        self._open: Set[int] = {int(xid) for xid in open_ones.split(",") if xid}

    def __contains__(self, xid: int) -> bool:
        """Whether it sees the transaction, whose id has only the lower 32 bits."""
        ahead = (xid - self._end) & 0xFFFFFFFF
        whole = self._end + (ahead if ahead < 1 << 31 else ahead - (1 << 32))
        return whole < self._first or (whole < self._end and whole not in self._open)

    def missed(self, xid: int, end: int) -> bool:
        """Whether a row's transaction had not ended before it.

        Args:
            xid: The lower 32 bits of its id, which in a row may be billions of transactions old.
            end: The first id that was not given to a transaction, now.
        """
        whole = self._first + ((xid - self._first) & 0xFFFFFFFF)
        return whole in self._open or self._end <= whole < end


class ChangesLost(BeamAgentsError):
    """The server no longer has the changes that a job's state wants next; going on would leave them out."""
