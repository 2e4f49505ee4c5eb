"""Texts that pydantic does not read as they are, read as psycopg reads them."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq import Format
from psycopg.types.array import register_all_arrays
from psycopg.types.bool import BoolLoader
from psycopg.types.datetime import TimestampLoader, TimestamptzLoader, TimetzLoader
from psycopg.types.json import JsonLoader
from psycopg.types.string import ByteaLoader, TextLoader

_LOADERS: dict[int | str, Any] = {
    0: TextLoader,
    "bool": BoolLoader,
    "bytea": ByteaLoader,
    "json": JsonLoader,
    "jsonb": JsonLoader,
    "timestamp": TimestampLoader,
    "timestamptz": TimestamptzLoader,
    "timetz": TimetzLoader,
}


class _Context:
    connection = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(types=psycopg.postgres.types)
        for name, loader in _LOADERS.items():
            self.adapters.register_loader(name, loader)
        register_all_arrays(self)


class Values:
    """Reads a value's text by the OID of its type: booleans, bytes, JSON, times and arrays; the others stay texts."""

    def __init__(self) -> None:
        self._transformer = Transformer(_Context())

    def __call__(self, type_: int, text: str) -> Any:
        """The value.

        Raises:
            Exception: Python has no such value, as with the year 10000.
        """
        return self._transformer.get_loader(type_, Format.TEXT).load(text.encode())
