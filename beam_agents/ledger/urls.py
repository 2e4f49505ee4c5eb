"""Ledgers by URL."""

from __future__ import annotations

import re

from beam_agents.errors import ConfigurationError
from beam_agents.ledger.base import Ledger
from beam_agents.ledger.memory import MemoryLedger
from beam_agents.ledger.sqlite import SqliteLedger

_FORMS = (
    "give 'sqlite:///relative.db', 'sqlite:////absolute/path.db', 'postgresql://user@host/database', "
    "'gs://bucket/prefix', 'memory:', 'memory:name' or a Ledger"
)


def ledger_from(ledger: str | Ledger) -> Ledger:
    """The ledger that a URL names, not open; an instance is returned as it is.

    The URLs are `sqlite:///relative.db` (from the folder of the process that calls this),
    `sqlite:////absolute/path.db`, `postgresql://user:password@host:5432/database?schema=beam_agents` (as libpq takes
    it, and the schema), `gs://bucket/prefix`, `memory:` (one of its own) and `memory:name` (one for all that use the
    name in a process). A path is taken as it is: nothing in it is escaped.

    Raises:
        ConfigurationError: It names no ledger, or what that ledger needs is not installed.
    """
    if isinstance(ledger, Ledger):
        return ledger
    if isinstance(ledger, str):
        if ledger.startswith("memory:"):
            return MemoryLedger(ledger.removeprefix("memory:") or None)
        if ledger.startswith(("postgresql://", "postgres://")):
            return _postgres(ledger)
        if ledger.startswith("gs://"):
            from beam_agents.ledger.gcs import GcsLedger

            return GcsLedger(ledger)
        path = ledger.removeprefix("sqlite:///")
        if path != ledger and path:
            if "?" in path:
                raise ConfigurationError(
                    f"ledger {ledger!r}: a SQLite ledger has no options; leave out '?' and the rest"
                )
            return SqliteLedger(path)
        ledger = re.sub(r"//.*@", "//***@", ledger)  # what stands there may be a password
    raise ConfigurationError(f"ledger {ledger!r} is not known: {_FORMS}")


def _postgres(url: str) -> Ledger:
    try:
        from beam_agents.ledger.postgres import PostgresLedger
    except ImportError as error:
        raise ConfigurationError(
            f"a PostgreSQL ledger needs psycopg, which cannot be imported ({error}): "
            "pip install 'beam-agents[postgres]'"
        ) from error
    return PostgresLedger(url)
