"""Results from the tables that `WriteTable` writes."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_json

from beam_agents.errors import ConfigurationError
from beam_agents.events import FailureReason
from beam_agents.io.ingress.results import Result, Results

_LOG = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_GROUP = 500
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?")

Status = Literal["decided", "failed"]


class TableResults(Results):
    """Looks into tables, for all who wait at once, ten times a second while somebody waits.

    Args:
        url: `"sqlite:///file.db"` or `"postgresql://..."`.
        tables: The tables, and what a row in them says.
        id_column: Where the event's id is.
    """

    def __init__(self, url: str, tables: Mapping[str, Status], *, id_column: str = "id") -> None:
        for name in (*tables, id_column):
            if not _NAME.fullmatch(name):
                raise ConfigurationError(f"{name!r} must be a name of plain letters")
        self._url = url
        self._tables = dict(tables)
        self._id = id_column
        self._waiting: defaultdict[str, list[asyncio.Future[Result]]] = defaultdict(list)
        self._looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Checks the address; tables may come later, with the first result."""
        if not self._url.startswith(("sqlite:///", "postgresql://", "postgres://")):
            raise ConfigurationError("results are in 'sqlite:///FILE' or 'postgresql://...'")

    async def find(self, id: str) -> Result | None:
        """The result, as the tables have it now."""
        return (await asyncio.to_thread(self._rows, [id])).get(id)

    async def wait(self, id: str) -> Result:
        """The result."""
        came: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting[id].append(came)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            return await came
        finally:
            self._waiting[id].remove(came)
            if not self._waiting[id]:
                del self._waiting[id]

    async def close(self) -> None:
        """Looks no more."""
        if self._looking is not None:
            self._looking.cancel()

    async def _look(self) -> None:
        while self._waiting:
            found: dict[str, Result] = {}
            try:
                found = await asyncio.to_thread(self._rows, list(self._waiting))
            except Exception as error:  # the database is away; who waits is told 202 in the end
                _LOG.warning("results: %s", type(error).__name__)
            for id, result in found.items():
                for came in self._waiting.get(id, ()):
                    if not came.done():
                        came.set_result(result)
            await asyncio.sleep(_LOOK_SECONDS)

    def _rows(self, ids: Sequence[str]) -> dict[str, Result]:
        found: dict[str, Result] = {}
        for at in range(0, len(ids), _GROUP):
            part = list(ids[at : at + _GROUP])
            for table, status in self._tables.items():
                names = {id: id for id in part}
                if status == "failed":  # WriteTable names a failure by its event and its reason, if not told otherwise
                    names |= {f"{id} {reason.value}": id for id in part for reason in FailureReason}
                for row in self._select(table, list(names)):
                    value = json.loads(to_json(row, bytes_mode="base64", inf_nan_mode="strings"))
                    found.setdefault(names[str(row[self._id])], Result(status, value))
        return found

    def _select(self, table: str, ids: list[str]) -> list[dict[str, Any]]:
        quoted = ".".join(f'"{part}"' for part in table.split("."))
        if self._url.startswith("sqlite:///"):
            path = Path(self._url.removeprefix("sqlite:///")).absolute()
            if not path.exists():
                return []
            connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)
            connection.row_factory = sqlite3.Row
            marks = ", ".join("?" * len(ids))
            try:
                rows = connection.execute(f'SELECT * FROM {quoted} WHERE "{self._id}" IN ({marks})', ids).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise
            finally:
                connection.close()
            return [dict(row) for row in rows]
        return self._select_postgres(quoted, ids)

    def _select_postgres(self, quoted: str, ids: list[str]) -> list[dict[str, Any]]:
        try:
            import psycopg
            from psycopg.rows import dict_row
        except ImportError as error:
            raise ConfigurationError(
                "results in PostgreSQL need psycopg: pip install 'beam-agents[postgres]'"
            ) from error
        with psycopg.connect(self._url, connect_timeout=5, row_factory=dict_row) as connection:
            try:
                # Names are checked above, and ids are parameters.
                statement = f'SELECT * FROM {quoted} WHERE "{self._id}" = ANY(%s)'
                return connection.execute(statement.encode(), [ids]).fetchall()
            except psycopg.errors.UndefinedTable:
                return []
