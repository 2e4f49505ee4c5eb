"""What is read, from where."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from beam_agents.errors import ConfigurationError
from beam_agents.secrets import Secret

_SLOT = re.compile(r"[a-z0-9_]{1,63}")
_TABLE = re.compile(r"[^.]+\.[^.]+")


@dataclass(frozen=True)
class Source:
    """Tables of a database, and the slot and the publication by which they are read.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    url: str
    password: Secret | None
    tables: tuple[str, ...]
    slot: str
    publication: str
    create: bool
    snapshot: bool

    def __post_init__(self) -> None:
        parts = urlsplit(self.url) if isinstance(self.url, str) else None
        if parts is None or parts.scheme not in ("postgresql", "postgres"):
            raise ConfigurationError("ReadPostgresChanges takes a URL as 'postgresql://user@host/database'")
        if parts.password is not None or "password=" in parts.query:
            raise ConfigurationError(
                f"ReadPostgresChanges: the URL of {self.place} has a password, which would be in the pickled pipeline; "
                "give password=EnvSecret(...), or a passfile or PGPASSWORD where the workers run"
            )
        if self.password is not None and not isinstance(self.password, Secret):
            raise ConfigurationError("ReadPostgresChanges(password=...) takes a Secret, such as EnvSecret('NAME')")
        if not self.tables or not all(isinstance(name, str) and _TABLE.fullmatch(name) for name in self.tables):
            raise ConfigurationError(
                f"ReadPostgresChanges(tables={list(self.tables)!r}) must name tables with their schemas, as in "
                "{'public.readings': Reading}"
            )
        if not _SLOT.fullmatch(self.slot):
            raise ConfigurationError(
                f"ReadPostgresChanges(slot={self.slot!r}): a slot's name has 1 to 63 of a-z, 0-9 and _"
            )
        if not 0 < len(self.publication.encode()) < 64:
            raise ConfigurationError(
                f"ReadPostgresChanges(publication={self.publication!r}): a name has 1 to 63 characters"
            )

    @property
    def place(self) -> str:
        """The server and the database, for messages."""
        parts = urlsplit(self.url)
        return f"{parts.netloc.rpartition('@')[2] or 'localhost'}{parts.path}"

    @property
    def anew(self) -> str:
        """What is left to do when changes are lost."""
        return (
            "changes are lost to this job. Start it without its state to read the tables anew, after "
            f"SELECT pg_drop_replication_slot('{self.slot}') if the slot is there"
        )

    @property
    def publication_sql(self) -> str:
        """The statement that makes the publication."""
        tables = ", ".join(".".join(map(quoted, name.split("."))) for name in self.tables)
        return (
            f"CREATE PUBLICATION {quoted(self.publication)} FOR TABLE {tables} WITH (publish_via_partition_root = true)"
        )

    @property
    def slot_sql(self) -> str:
        """The statement that makes the slot."""
        return f"SELECT pg_create_logical_replication_slot('{self.slot}', 'pgoutput')"


def quoted(name: str) -> str:
    """A name as it stands in a statement."""
    return '"' + name.replace('"', '""') + '"'
