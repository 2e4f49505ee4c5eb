"""Counts lines of code: a line counts if something stands on it that is neither a comment nor part of a docstring."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

_NOTHING = frozenset(
    {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
)


def lines_of_code(source: str) -> int:
    """The lines of a module that count."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:
            first = node.body[0]
            docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOTHING:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def lines_of(module: str) -> int:
    """The same for a module of this package, by its name."""
    return lines_of_code(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
