"""One SQL statement with `:name` parameters, checked and translated without a database."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from beam_agents.errors import ConfigurationError

Dialect: TypeAlias = Literal["sqlite", "postgresql"]

_READING = ("select", "with", "values", "table", "explain", "show")
_CHANGING = ("insert", "update", "delete", "merge", "replace", "with", "select")
_WRITING = re.compile(r"\b(insert|update|delete|merge|replace|create|drop|alter|truncate)\b", re.IGNORECASE)

# What is copied as it is: nothing in it is a parameter or the end of the statement.
_COMMENT = r"--[^\n]*|/\*.*?\*/"
_QUOTED = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\""
_TOKENS = {
    "sqlite": re.compile(
        rf"(?P<comment>{_COMMENT})|(?P<quoted>{_QUOTED}|`[^`]*`|\[[^\]]*\])|:(?P<name>[A-Za-z_]\w*)"
        r"|(?P<other>\?\d*|[@$][A-Za-z_]\w*)|(?P<end>;)",
        re.DOTALL,
    ),
    "postgresql": re.compile(
        rf"(?P<comment>{_COMMENT})|(?P<quoted>\b[eE]'(?:[^'\\]|''|\\.)*'|{_QUOTED}"
        r"|(?<![\w$])(?P<tag>\$(?:[A-Za-z_]\w*)?\$).*?(?P=tag))|(?P<cast>::)|:(?P<name>[A-Za-z_]\w*)"
        r"|(?P<other>\$\d+|%s|%\()|(?P<end>;)",
        re.DOTALL,
    ),
}


class Statement:
    """A statement.

    Args:
        kind: The tool, for errors.
        text: The statement.
        dialect: Whose SQL it is.

    Attributes:
        text: As the database's client takes it: `:name` for SQLite, `%(name)s` for psycopg.
        names: The parameters that it uses.
        reads: Whether it begins as statements do that only read.
        changes_rows: Whether it may change rows, in a transaction that the tool begins and ends.

    Raises:
        ConfigurationError: It is more than one statement, or has parameters that are not written `:name`.
    """

    def __init__(self, kind: str, text: str, dialect: Dialect) -> None:
        if not isinstance(text, str):
            raise ConfigurationError(f"{kind}: the statement must be a text, not {text!r}")
        self.names: list[str] = []
        made: list[str] = []
        bare: list[str] = []
        at, ended = 0, False

        def plain(part: str) -> None:
            if ended and part.strip():
                raise ConfigurationError(f"{kind}: give one statement; after ';' there is {part.strip()[:40]!r}")
            bare.append(part)
            made.append(_escaped(part, dialect))

        for token in _TOKENS[dialect].finditer(text):
            plain(text[at : token.start()])
            at = token.end()
            if token["comment"] is not None:
                bare.append(" ")
                made.append(" ")
                continue
            if token["end"] is not None:
                ended = True
                continue
            if ended:
                raise ConfigurationError(f"{kind}: give one statement; after ';' there is {token[0][:40]!r}")
            if token["other"] is not None:
                raise ConfigurationError(f"{kind}: write parameters as :name, not {token['other']!r}")
            if token["name"] is not None:
                self.names.append(token["name"])
                made.append(f":{token['name']}" if dialect == "sqlite" else f"%({token['name']})s")
                bare.append(" ")
            else:
                made.append(_escaped(token[0], dialect))
                bare.append(" ")
        plain(text[at:])
        if re.search(r"['\"`]|/\*", "".join(bare)):
            raise ConfigurationError(f"{kind}: a quote or a comment of the statement is not closed")
        self.text = "".join(made).strip()
        words = "".join(bare).split(None, 1)
        if not words:
            raise ConfigurationError(f"{kind}: the statement is empty")
        first = re.split(r"\W", words[0].lstrip("("), maxsplit=1)[0].lower()
        self.changes_rows = first in _CHANGING
        self.reads = first in _READING and not (first in ("with", "explain") and _WRITING.search("".join(bare)))


def _escaped(text: str, dialect: Dialect) -> str:
    return text.replace("%", "%%") if dialect == "postgresql" else text
