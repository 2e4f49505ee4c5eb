"""`sql_tool`: a SQL statement as a tool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from beam_agents.codec import adapter, to_json_value
from beam_agents.engine.threads import in_thread
from beam_agents.errors import ConfigurationError
from beam_agents.secrets import Secret
from beam_agents.toolkit.declared import (
    KEY,
    Context,
    Declaration,
    Lost,
    Reconcile,
    check_effect,
    check_limits,
    used_names,
    without_user,
)
from beam_agents.toolkit.kept import Kept
from beam_agents.toolkit.sql_database import Database, Postgres, Query, Rows, Sqlite, check_psycopg
from beam_agents.toolkit.sql_statement import Dialect, Statement
from beam_agents.tools import CannotHappen, Effect, Happened, Tool, Unknown

_FORMS = (
    "give 'sqlite:///relative.db', 'sqlite:////absolute/path.db', 'postgresql://user@host/database', or a Secret that "
    "holds a URL of PostgreSQL"
)
_GRACE = timedelta(seconds=15)
"""How much longer than the statement the whole call may take: to connect, and to be told that it was stopped."""


def sql_tool(
    database: str | Secret,
    statement: str,
    *,
    effect: Effect,
    reconcile: str | Reconcile | None = None,
    rows: int = 100,
    timeout: timedelta = timedelta(seconds=10),
    retries: int = 0,
    model_retries: int = 2,
    in_flight: int | None = None,
    name: str | None = None,
    description: str | None = None,
    redact: Callable[[str], str] | None = None,
) -> Callable[[Callable[..., Any]], Tool[Any]]:
    """Makes a SQL statement a tool. It decorates a typed function without a body.

    The return type says what becomes of the rows: `list[Model]` all of them, `Model | None` the only one, a scalar
    the first column of the only one, `int` the number of changed rows where there are no columns, `None` nothing.

    Args:
        database: `"sqlite:///crm.db"`, `"postgresql://user@host/database"`, or a `Secret` that holds the latter.
        statement: One statement; parameters are written `:name` and bound, never put into the text.
            `:idempotency_key` is the call's key.
        effect: `pure` statements run in a transaction that can only read. What `idempotent` and `once` mean, the
            statement has to hold: `insert ... on conflict do nothing` with the key.
        reconcile: For `once`: a SELECT that finds what the call did.
        rows: The most rows that it may give. More are an error that the model is told; nothing is cut off.
        timeout: For the statement, after which the database stops it.
        retries, model_retries, in_flight, name, description, redact: As in `@tool`.

    Raises:
        ConfigurationError: The declaration cannot work.
    """
    dialect, path = _dialect(database)
    kind = f"sql_tool {statement!r}"
    check_effect(kind, effect)
    check_limits(kind, timeout=timeout, rows=rows)
    if dialect == "postgresql":
        check_psycopg()
    checked = Statement(kind, statement, dialect)
    if effect == "pure" and not checked.reads:
        raise ConfigurationError(f"{kind} does not only read: declare effect='idempotent' or 'once'")
    asked = Reconcile(reconcile) if isinstance(reconcile, str) else reconcile
    if asked is not None and effect != "once":
        raise ConfigurationError(f"{kind}: reconcile is for 'once' calls only; drop it or declare effect='once'")
    ask = Statement(f"{kind}, its reconcile", asked.ask, dialect) if asked is not None else None
    if effect != "pure" and not checked.changes_rows:
        raise ConfigurationError(f"{kind}: it must be one of insert, update, delete, merge, replace, with, select")
    if ask is not None and not ask.reads:
        raise ConfigurationError(f"{kind}: reconcile must only read")
    # SQLite keeps nothing open, but a closing worker closes either the same way.
    kept = Kept(partial(_open, path, database))

    def declare(function: Callable[..., Any]) -> Tool[Any]:
        declared = Declaration("sql_tool", function)
        if KEY in declared.parameters:
            raise ConfigurationError(f"{kind}: the engine fills {KEY!r}; leave it out of the parameters")
        used = dict.fromkeys(checked.names, "the statement")
        used_names(kind, used | (dict.fromkeys(ask.names, "reconcile") if ask is not None else {}), declared.parameters)
        unused = [parameter for parameter in declared.parameters if parameter not in used]
        if unused:
            raise ConfigurationError(f"{kind}: the statement does not use {', '.join(f':{one}' for one in unused)}")
        shape = _Shape(kind, declared.returns)
        run = _Run(kept, checked, shape, rows=rows, seconds=timeout.total_seconds(), writes=effect != "pure")
        look = _Run(kept, ask, shape, rows=rows, seconds=timeout.total_seconds(), writes=False) if ask else None
        return Tool(
            declared.calling(run.call),
            effect=effect,
            reconcile=declared.calling(_Look(look, asked).call) if look is not None and asked is not None else None,
            timeout=timeout + _GRACE,
            retries=retries,
            model_retries=model_retries,
            in_flight=in_flight,
            name=name,
            description=description,
            redact=redact,
        )

    return declare


class _Shape:
    """What a return type makes of rows."""

    def __init__(self, kind: str, returns: Any) -> None:
        self.returns = returns
        self.many = get_origin(returns) is list
        inner = get_args(returns)[0] if self.many else returns
        if get_origin(inner) in (Union, UnionType):
            members = [member for member in get_args(inner) if member is not NoneType]
            inner = members[0] if len(members) == 1 else inner
        self.nothing = inner in (None, NoneType)
        self.counts = returns is int
        try:
            schema = {} if self.nothing else TypeAdapter(inner).json_schema()
        except Exception as error:
            raise ConfigurationError(f"{kind}: rows cannot be read as {returns!r}: {error}") from error
        if "$ref" in schema:
            schema = schema["$defs"][schema["$ref"].rpartition("/")[2]]
        self.whole_rows = schema.get("type") == "object"

    def value(self, found: Rows) -> Any:
        """The rows as the return type, or as something that does not fit it."""
        if self.nothing:
            return None
        if not found.columns:
            return found.changed if self.counts else Lost("no rows: the statement gives none, as it has no columns")
        if not self.whole_rows and len(found.columns) > 1:
            return Lost(f"columns {', '.join(found.columns)}, of which a scalar takes one")
        values: list[Any] = [
            dict(zip(found.columns, row, strict=True)) if self.whole_rows else row[0] for row in found.rows
        ]
        if not self.many and len(values) > 1:
            return Lost(f"{len(values)} rows, where the return type has place for one")
        value = values if self.many else next(iter(values), None)
        try:
            return adapter(self.returns).validate_python(value, by_alias=True, by_name=True)
        except ValidationError:  # the engine says what is wrong
            return value


class _Run:
    """Carries a statement out; it can be pickled."""

    def __init__(
        self, kept: Kept[Database], statement: Statement, shape: _Shape, *, rows: int, seconds: float, writes: bool
    ) -> None:
        self._kept = kept
        self._statement = statement
        self._shape = shape
        self._rows = rows
        self._seconds = seconds
        self._writes = writes

    async def call(self, ctx: Context, values: dict[str, Any]) -> Any:
        return self._shape.value(await self.found(ctx, values))

    def value(self, found: Rows) -> Any:
        return self._shape.value(found)

    async def found(self, ctx: Context, values: dict[str, Any]) -> Rows:
        known = values | {KEY: ctx.idempotency_key}
        bound = {name: _bindable(known[name]) for name in self._statement.names}
        query = Query(self._statement.text, bound, self._rows, self._seconds, self._writes)
        async with self._kept.use() as database:
            found: Rows = await in_thread(database.run, query)
            return found


class _Look:
    """Asks the database what became of a call."""

    def __init__(self, run: _Run, reconcile: Reconcile) -> None:
        self._run = run
        self._reconcile = reconcile

    async def call(self, ctx: Context, values: dict[str, Any]) -> Happened[Any] | CannotHappen | Unknown:
        found = await self._run.found(ctx, values)
        return Happened(self._run.value(found)) if found.rows else self._reconcile.nothing_found()


def _bindable(value: Any) -> Any:
    return value if isinstance(value, bytes) else to_json_value(value)


def _dialect(database: Any) -> tuple[Dialect, str]:
    """Whose SQL it is, and the path of a file."""
    if isinstance(database, Secret):  # libpq's URLs are all that has a secret to hold
        return "postgresql", ""
    if isinstance(database, str):
        if database.startswith(("postgresql://", "postgres://")):
            if ":" in database.partition("//")[2].partition("/")[0].rpartition("@")[0] or "password=" in database:
                raise ConfigurationError(
                    "sql_tool: the URL holds a password, which would be in every pickle of the pipeline; "
                    "give EnvSecret('NAME') or another Secret that holds the URL"
                )
            return "postgresql", ""
        path = database.removeprefix("sqlite:///")
        if path != database and path and "?" not in path:
            return "sqlite", path
        raise ConfigurationError(f"sql_tool: {without_user(database)} is no database: {_FORMS}")
    raise ConfigurationError(f"sql_tool: {type(database).__name__} is no database: {_FORMS}")


@asynccontextmanager
async def _open(path: str, url: str | Secret) -> AsyncIterator[Database]:
    database: Database = Sqlite(path) if path else Postgres(url)
    try:
        yield database
    finally:
        database.close()
