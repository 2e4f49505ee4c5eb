"""SQL statements are checked and translated without a database."""

from __future__ import annotations

import pytest

from beam_agents import ConfigurationError
from beam_agents.toolkit.sql_statement import Dialect, Statement


@pytest.mark.parametrize(
    ("text", "translated", "names"),
    [
        ("select :a, :b_2", "select %(a)s, %(b_2)s", ["a", "b_2"]),
        ("select ':a', \":b\", :c", "select ':a', \":b\", %(c)s", ["c"]),
        ("select 'it''s :a' || :b", "select 'it''s :a' || %(b)s", ["b"]),
        ("select E'\\':a' || :b", "select E'\\':a' || %(b)s", ["b"]),
        ("select :a::int, now()::date", "select %(a)s::int, now()::date", ["a"]),
        ("select $$:a;$$, $x$ $$ :b $x$, :c", "select $$:a;$$, $x$ $$ :b $x$, %(c)s", ["c"]),
        ("select 5 % 3, '%s' -- :a\n, :b", "select 5 %% 3, '%%s'  \n, %(b)s", ["b"]),
        ("select /* ; :a */ :b;", "select   %(b)s", ["b"]),
    ],
)
def test_parameters_are_found_outside_of_strings_and_casts(text: str, translated: str, names: list[str]) -> None:
    statement = Statement("tool", text, "postgresql")

    assert statement.text == translated
    assert statement.names == names


def test_sqlite_keeps_its_own_form() -> None:
    statement = Statement("tool", "select [:a], `:b`, ':c', :d % 2 from t where x = :e ; ", "sqlite")

    assert statement.text == "select [:a], `:b`, ':c', :d % 2 from t where x = :e"
    assert statement.names == ["d", "e"]


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("select 1; select 2", "one statement"),
        ("select 1;; drop table x", "one statement"),
        ("select 1; 'x'", "one statement"),
        ("", "empty"),
        (" -- nothing\n ", "empty"),
        ("select 'open", "not closed"),
        ("select 1 /* open", "not closed"),
    ],
)
def test_what_is_not_one_whole_statement_is_refused(text: str, says: str, dialect: Dialect) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Statement("tool", text, dialect)


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("select ?", "sqlite"),
        ("select ?1", "sqlite"),
        ("select @a", "sqlite"),
        ("select $a", "sqlite"),
        ("select $1", "postgresql"),
        ("select %s", "postgresql"),
        ("select %(a)s", "postgresql"),
    ],
)
def test_other_forms_of_parameters_are_refused(text: str, dialect: Dialect) -> None:
    with pytest.raises(ConfigurationError, match="write parameters as :name"):
        Statement("tool", text, dialect)


@pytest.mark.parametrize(
    ("text", "reads", "changes"),
    [
        ("select 1", True, True),
        ("(select 1)", True, True),
        ("-- so\nWITH x AS (select 1) SELECT * FROM x", True, True),
        ("with x as (delete from t returning *) select * from x", False, True),
        ("with x as (select 'delete') select * from x", True, True),
        ("values (1)", True, False),
        ("insert into t values (1)", False, True),
        ("explain analyze delete from t", False, False),
        ("drop table t", False, False),
        ("commit", False, False),
        ("pragma query_only = off", False, False),
        ("attach 'x' as y", False, False),
    ],
)
def test_what_a_statement_may_do_is_seen_by_its_beginning(text: str, reads: bool, changes: bool) -> None:
    statement = Statement("tool", text, "postgresql")

    assert (statement.reads, statement.changes_rows) == (reads, changes)
