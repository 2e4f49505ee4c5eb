"""Records as plain text that fits a terminal, and what people type as ages and keys."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime

from beam_agents.codec import canonical_json, key_text

WIDTH = 120
"""Columns of a terminal."""

_NARROWEST = 6
_MOST_LINES = 3
_GAP = "  "
_LABEL = 8
_UNITS = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}


def visible(text: str) -> str:
    """The text on one line, with escapes for what would move a terminal's cursor: it comes from events and models."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shorten(text: str, width: int) -> str:
    """The beginning of a text, with an ellipsis if there is more."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def paragraph(text: str, indent: str) -> list[str]:
    """A text on a few lines, with an ellipsis if there is more."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, max_lines=_MOST_LINES, placeholder=" …"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, whole: Sequence[str] = ()) -> list[str]:
    """Aligned lines, the header first. Numbers stand to the right. If it gets too wide, the widest columns are
    shortened, except for those that `whole` names: what people have to copy stays whole, and a line may get longer."""
    cells = [list(header), *([visible(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    least = [size if name in whole else max(_NARROWEST, len(name)) for name, size in zip(header, widths, strict=True)]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > WIDTH:
        wide = [i for i, size in enumerate(widths) if size > least[i]]
        if not wide:
            break
        widths[max(wide, key=lambda i: widths[i])] -= 1
    right = [all(row[i].isdecimal() for row in rows) and bool(rows) for i in range(len(header))]
    return [
        _GAP.join(
            (shorten(cell, width).rjust if number else shorten(cell, width).ljust)(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def labelled(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Names and values, one pair a line, the values below each other."""
    return [f"{name:<{_LABEL}}{_GAP}{value}".rstrip() for name, value in pairs]


def utc(seconds: float) -> datetime:
    """Seconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(seconds, tz=UTC)


def moment(at: datetime, now: datetime | None = None) -> str:
    """A time to the second; without its date if it is today's, and `now` is given."""
    return at.strftime("%H:%M:%S" if now is not None and at.date() == now.date() else "%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """A time span in the two largest units that count."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, small in (("d", "h"), ("h", "min"), ("min", "s")):
        count, rest = divmod(whole, _UNITS[large])
        if count:
            fine = rest // _UNITS[small]
            return f"{count} {large} {fine} {small}" if fine else f"{count} {large}"
    return f"{whole} s"


def age(text: str) -> float:
    """Seconds of `30d`, `12h` or `90min`.

    Raises:
        ValueError: It is none of these.
    """
    found = re.fullmatch(r"(\d+)(d|h|min)", text)
    if not found:
        raise ValueError(f"{text!r} is no age; give days, hours or minutes as in 30d, 12h, 90min")
    return float(int(found[1]) * _UNITS[found[2]])


def keys_of(text: str) -> list[str]:
    """The ledger's forms of a Beam key as it is typed: as a text, and as the JSON that it may be (`7`, `["a", 1]`)."""
    forms = [key_text(text)]
    try:
        forms.append(canonical_json(json.loads(text)))
    except ValueError:
        return forms
    return list(dict.fromkeys(forms))
