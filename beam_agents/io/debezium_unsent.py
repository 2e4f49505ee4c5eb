"""Values that PostgreSQL does not send again: long ones (TOAST) that an update left as they were."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from hashlib import md5
from typing import Any


class Unsent:
    """Knows what Debezium puts in place of a value that it was not sent.

    Args:
        placeholder: The connector's `unavailable.value.placeholder`.
    """

    def __init__(self, placeholder: str) -> None:
        raw = placeholder.encode()
        encoded = base64.b64encode(raw).decode()
        # As java.util.UUID.nameUUIDFromBytes.
        named = str(uuid.UUID(bytes=md5(raw, usedforsecurity=False).digest(), version=3))
        self._forms: tuple[Any, ...] = (
            placeholder,
            encoded,
            [placeholder],
            [encoded],
            [named],
            list(raw),
            {placeholder: placeholder},
        )

    def filled(
        self, table: str, after: Mapping[str, Any], before: Any, wanted: frozenset[str] | None
    ) -> dict[str, Any]:
        """The row as it is now, with unsent values taken from the row as it was.

        Args:
            table: The table.
            after: The row as it is now.
            before: The row as it was, if that is told.
            wanted: The columns that a row takes; others, and with `None` all, are left out if nothing tells them.

        Raises:
            ValueError: Nothing tells the value of a column that is wanted.
        """
        row = dict(after)
        for name in [name for name, value in after.items() if value in self._forms]:
            told = before.get(name) if isinstance(before, dict) else None
            if told is not None and told not in self._forms:
                row[name] = told
            elif wanted is None or name not in wanted:
                del row[name]
            else:
                raise ValueError(
                    f"after.{name} was not changed, and PostgreSQL does not send long values again; "
                    f"ALTER TABLE {table} REPLICA IDENTITY FULL makes it send them"
                )
        return row
