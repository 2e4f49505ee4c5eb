"""The columns of a table, from the fields of a pydantic model."""

from __future__ import annotations

import types
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import AwareDatetime, BaseModel, FutureDate, FutureDatetime, NaiveDatetime, PastDate, PastDatetime

from beam_agents.codec import canonical_json

Kind = Literal["bool", "int", "float", "decimal", "text", "datetime", "date", "bytes", "json"]

_KINDS: dict[type[Any], Kind] = {
    bool: "bool",
    int: "int",
    float: "float",
    Decimal: "decimal",
    str: "text",
    datetime: "datetime",
    AwareDatetime: "datetime",  # pydantic's are no subclasses
    NaiveDatetime: "datetime",
    PastDatetime: "datetime",
    FutureDatetime: "datetime",
    date: "date",
    PastDate: "date",
    FutureDate: "date",
    bytes: "bytes",
}


@dataclass(frozen=True)
class Column:
    """A column and how its values are written."""

    name: str
    kind: Kind
    nullable: bool


def columns_of(row_type: type[BaseModel]) -> tuple[Column, ...]:
    """A column for each field; what has no type of its own in a database is kept as JSON."""
    found = []
    for name, field in row_type.model_fields.items():
        kind, nullable = _kind_of(field.annotation)
        found.append(Column(name, kind, nullable))
    return tuple(found)


def values_of(row: BaseModel, columns: tuple[Column, ...]) -> list[Any]:
    """What a row has in its columns.

    Raises:
        ValueError: JSON cannot hold a value of a JSON column.
    """
    return [_value(getattr(row, column.name), column.kind) for column in columns]


def _value(value: Any, kind: Kind) -> Any:
    if value is None:
        return None
    if kind == "json":
        return canonical_json(value)
    return value.value if isinstance(value, Enum) else value


def _kind_of(annotation: Any) -> tuple[Kind, bool]:
    nullable = False
    if get_origin(annotation) in (Union, types.UnionType):
        members = get_args(annotation)
        nullable = type(None) in members
        others = [member for member in members if member is not type(None)]
        if len(others) != 1:
            return "json", nullable
        (annotation,) = others
    if get_origin(annotation) is Literal:
        annotation = str if all(isinstance(choice, str) for choice in get_args(annotation)) else None
    if isinstance(annotation, type):
        for type_, kind in _KINDS.items():
            if issubclass(annotation, type_):
                return kind, nullable
    return "json", nullable
