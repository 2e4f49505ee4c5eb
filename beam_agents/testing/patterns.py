"""Texts for simple regular expressions, so that examples fit a schema's `pattern`."""

from __future__ import annotations

import re

from beam_agents.errors import ConfigurationError

_ESCAPED = {"d": "0", "D": "a", "w": "a", "W": "-", "s": " ", "S": "a", "n": "\n", "t": "\t", "b": "", "A": "", "Z": ""}
_REPEAT = re.compile(r"[*+?]|\{(\d*)(,(\d*))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")
_PRINTABLE = "aA0 -_.:,/@#" + "".join(map(chr, range(33, 127)))


def text_for(pattern: str, *, at_least: int = 0) -> str:
    """A text in which a pattern is found: literals, classes, groups, alternatives and repetitions are understood.

    Args:
        pattern: The regular expression, as JSON schema has it.
        at_least: The smallest length wanted, where the pattern leaves room.

    Raises:
        ConfigurationError: The pattern has more in it than that.
    """
    for repeats in range(1 + at_least):  # repetitions without a bound are drawn out until the text is long enough
        try:
            text = _Reader(pattern, repeats).alternatives()
        except IndexError:
            break
        if len(text) >= at_least and re.search(pattern, text):
            return text
    raise ConfigurationError(
        f"no example text is known for the pattern {pattern!r} and a length of {at_least} or more; simplify it, or "
        "use a FunctionModel or a ScriptedModel that gives a value itself"
    )


class _Reader:
    """Reads a pattern from left to right and writes the text as it goes."""

    def __init__(self, pattern: str, repeats: int) -> None:
        self._pattern = pattern
        self._at = 0
        self._repeats = repeats

    def alternatives(self) -> str:
        """The first of the alternatives; the others are read over."""
        first = self._sequence()
        while self._next() == "|":
            self._at += 1
            self._sequence()
        return first

    def _next(self) -> str:
        return self._pattern[self._at] if self._at < len(self._pattern) else ""

    def _sequence(self) -> str:
        written = ""
        while self._next() not in ("", "|", ")"):
            written += self._repeated(self._one())
        return written

    def _one(self) -> str:
        character = self._next()
        self._at += 1
        if character in ("^", "$"):
            return ""
        if character == ".":
            return "a"
        if character == "\\":
            escaped = self._pattern[self._at]
            self._at += 1
            return _ESCAPED.get(escaped, escaped)
        if character == "[":
            found = _CLASS.match(self._pattern, self._at - 1)
            if found is None:
                return character
            self._at = found.end()
            return next((one for one in _PRINTABLE if re.match(found[0], one)), "")
        if character == "(":
            if self._pattern.startswith("?:", self._at):
                self._at += 2
            inner = self.alternatives()
            self._at += 1
            return inner
        return character

    def _repeated(self, text: str) -> str:
        found = _REPEAT.match(self._pattern, self._at)
        if found is None:
            return text
        self._at = found.end()
        if found[0] == "?":
            return text
        fewest = int(found[1] or 0) if found[0].startswith("{") else int(found[0] == "+")
        bounded = found[0].startswith("{") and (found[2] is None or bool(found[3]))
        most = int(found[3] or fewest) if bounded else max(fewest, 1) + self._repeats
        return text * max(fewest, min(most, max(fewest, 1) + self._repeats))
