"""What the rows of a change data capture are, by table."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, NotRequired, Required, get_args, get_origin, get_type_hints

from pydantic import AliasChoices, AliasPath, BaseModel, Json, TypeAdapter, ValidationError

from beam_agents.codec import dump, explain, load
from beam_agents.errors import ConfigurationError
from beam_agents.io.changes import Change, change_type
from beam_agents.template import field_names, members

_BYTES = ("val_json_bytes", "ser_json_bytes")


@dataclass(frozen=True)
class _Shape:
    """What the fields of a row take, by column."""

    wanted: frozenset[str] | None
    columns: Mapping[str, str]
    texts: frozenset[str]
    numbers: frozenset[str]
    times: frozenset[str]


class Rows:
    """The type of each table's rows.

    Args:
        owner: What takes them, for errors.
        row: A type for all tables, or one for each.

    Raises:
        ConfigurationError: There is none, pydantic cannot read it, or it has bytes that JSON cannot hold.
    """

    def __init__(self, owner: str, row: Any) -> None:
        self._row = dict(row) if isinstance(row, Mapping) else row
        if not isinstance(row, Mapping):
            self.types: tuple[Any, ...] = (row,)
        else:
            self.types = tuple(dict.fromkeys(row.values()))
        if not self.types:
            raise ConfigurationError(f"{owner}({row!r}) must name the type of at least one table")
        for type_ in self.types:
            try:
                TypeAdapter(type_)
            except Exception as error:
                raise ConfigurationError(f"{owner}: pydantic cannot read rows of {type_!r}: {error}") from error
            for model in members(type_):
                self._check_bytes(owner, model)
        by_table = self._row if isinstance(self._row, dict) else {"": row}
        self._shapes = {table: _shape_of(type_) for table, type_ in by_table.items()}

    def __repr__(self) -> str:
        if isinstance(self._row, dict):
            return f"{{{', '.join(f'{table!r}: {_name(row)}' for table, row in self._row.items())}}}"
        return _name(self._row)

    @property
    def change(self) -> Any:
        """The type of the changes."""
        return change_type(self._row if isinstance(self._row, dict) else {"": self._row})

    def of(self, table: str) -> Any:
        """The type of a table's rows.

        Raises:
            ValueError: The table has none.
        """
        if not isinstance(self._row, dict):
            return self._row
        if table not in self._row:
            raise ValueError(f"no type was given for rows of {table!r}, only for {', '.join(self._row)}")
        return self._row[table]

    def row(self, table: str, image: str, value: Any) -> Any:
        """A row from JSON data.

        Raises:
            ValueError: It does not fit; the message names the fields, behind `image`.
        """
        try:
            return load(self.of(table), json.dumps(value))
        except ValidationError as error:
            raise ValueError(f"{image}: {explain(error, 'the row')}") from error

    def perhaps(self, table: str, value: Mapping[str, Any]) -> Any:
        """A row of a few columns; `None` if they are none."""
        try:
            return load(self.of(table), json.dumps(value)) if value else None
        except ValueError:
            return None

    def changed(self, **parts: Any) -> Change[Any]:
        """A `Change`.

        Raises:
            ValueError: The pipeline could not pass it on.
        """
        type_: Any = Change[self.of(parts["table"])]  # type: ignore[misc]
        change: Change[Any] = type_(**parts)
        dump(type_, change)
        return change

    def field(self, change: Change[Any], key: Mapping[str, Any], absent: str, name: str) -> Any:
        """A field of a change's row, or of the row's key if there is no row.

        Args:
            change: The change.
            key: The columns of the row's key.
            absent: What to say if neither has it.
            name: The field.

        Raises:
            ValueError: Neither has it.
        """
        if change.row is not None:
            return change.row.get(name) if isinstance(change.row, dict) else getattr(change.row, name, None)
        if change.operation == "truncate":
            raise ValueError("a truncate has no row; give a function of the Change")
        column = self.column(change.table, name)
        if column not in key:
            raise ValueError(absent)
        return key[column]

    def wanted(self, table: str) -> frozenset[str] | None:
        """The columns that a row takes; `None` if it takes any."""
        return self._shape(table).wanted

    def column(self, table: str, name: str) -> str:
        """The column of a field: its alias, if it has one."""
        return self._shape(table).columns.get(name, name)

    def texts(self, table: str) -> frozenset[str]:
        """The columns whose fields take a text, or read JSON from one."""
        return self._shape(table).texts

    def numbers(self, table: str) -> frozenset[str]:
        """The columns whose fields take numbers and no texts."""
        return self._shape(table).numbers

    def times(self, table: str) -> frozenset[str]:
        """The columns whose fields take dates or times and no numbers."""
        return self._shape(table).times

    def _shape(self, table: str) -> _Shape:
        self.of(table)
        return self._shapes[table if isinstance(self._row, dict) else ""]

    def _check_bytes(self, owner: str, model: Any) -> None:
        config = getattr(model, "model_config", {})
        for name, annotation, _ in _fields(model):
            if bytes in members(annotation) and any(config.get(key) != "base64" for key in _BYTES):
                raise ConfigurationError(
                    f"{owner}: {_name(model)}.{name} is bytes, which come in base64: give {_name(model)} "
                    "model_config = ConfigDict(val_json_bytes='base64', ser_json_bytes='base64')"
                )


def wanted_columns(type_: Any) -> frozenset[str] | None:
    """The columns that a row takes, by their fields' names and aliases; `None` if it takes any."""
    models = members(type_)
    if any(field_names(model) is None for model in models):
        return None
    return frozenset(column for model in models for name in field_names(model) or () for column in _names(model, name))


def _shape_of(type_: Any) -> _Shape:
    models = members(type_)
    columns = {name: _column(model, name) for model in models for name in field_names(model) or ()}
    texts, numbers, times = set(), set(), set()
    for name, annotation, metadata in (field for model in models for field in _fields(model)):
        kinds = set(_kinds(annotation))
        if str in members(annotation) or _reads_json(annotation, metadata):
            texts.add(columns[name])
        if kinds & {int, float, Decimal} and str not in kinds:
            numbers.add(columns[name])
        if kinds & {date, datetime, time, timedelta} and int not in kinds:
            times.add(columns[name])
    return _Shape(wanted_columns(type_), columns, frozenset(texts), frozenset(numbers), frozenset(times))


def _column(model: Any, name: str) -> str:
    return next(iter(_aliases(model, name)), name)


def _names(model: Any, name: str) -> Iterator[str]:
    yield name
    yield from _aliases(model, name)


def _aliases(model: Any, name: str) -> Iterator[str]:
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return
    field = model.model_fields[name]
    alias = field.validation_alias or field.alias
    for one in alias.choices if isinstance(alias, AliasChoices) else (alias,):
        first = one.path[0] if isinstance(one, AliasPath) else one
        if isinstance(first, str):
            yield first


def _fields(model: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(model, type) and issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            yield name, field.annotation, field.metadata
    elif field_names(model) is not None:  # a dataclass or a TypedDict
        for name, hint in get_type_hints(model, include_extras=True).items():
            while get_origin(hint) in (Required, NotRequired):
                (hint,) = get_args(hint)
            metadata = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
            yield name, hint, metadata


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types of a field's values, and of those in its lists."""
    for member in members(annotation):
        origin = get_origin(member)
        if isinstance(origin, type) and issubclass(origin, Collection) and not issubclass(origin, Mapping):
            for part in get_args(member):
                yield from _kinds(part)
        else:
            yield member


def _reads_json(annotation: Any, metadata: Any) -> bool:
    if any(Json in (item, type(item)) for item in metadata):
        return True
    if get_origin(annotation) is Annotated:
        return _reads_json(get_args(annotation)[0], get_args(annotation)[1:])
    return any(_reads_json(part, ()) for part in get_args(annotation))


def _name(type_: Any) -> str:
    return getattr(type_, "__name__", None) or repr(type_)
