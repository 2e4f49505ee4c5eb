"""Follows files that grow: where they are, how far each was read, and what has come since. Knows nothing of streams."""

from __future__ import annotations

import hashlib
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from beam_agents.errors import ConfigurationError

LONGEST_LINE: Final = 16 * 1024 * 1024
"""Bytes. A longer line could not pass through a runner."""

_SEAL_BYTES: Final = 256


class Position(NamedTuple):
    """How far a file was read."""

    offset: int = 0
    """Bytes; the beginning of a line."""
    seal: str = ""
    """Digest of the last bytes before the offset: they differ when the file is not the one that was read."""
    refused: bool = False
    """The file was found to be another one, or cannot be read as lines; it is left alone."""
    missing_since: float | None = None
    """When the file was first not there, in seconds since 1970."""


class Refused(Exception):
    """A file that is not read any further. The message says why."""


@dataclass(frozen=True)
class Found:
    """A file that is there."""

    path: str
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Place:
    """Where files are looked for."""

    pattern: str
    base: str
    """The folder that names of files are relative to, with a slash at its end."""
    skips_hidden: bool
    """Whether names that begin with a dot are left out."""

    @classmethod
    def of(cls, path: str | Path) -> Place:
        """The place that a user means by a folder, a pattern or a file.

        Raises:
            ConfigurationError: It cannot be told which of them it is.
        """
        given = str(path)
        if not given.strip():
            raise ConfigurationError(f"ReadLines({path!r}): name a folder, a pattern or a file")
        local = FileSystems.get_scheme(given) is None
        if local:  # workers may have another working directory
            given = f"{Path(given).absolute()}{'/' if given.endswith('/') else ''}"
        try:
            FileSystems.get_filesystem(given)
        except ValueError as error:
            raise ConfigurationError(f"ReadLines({path!r}): {error}") from error
        fixed = re.split(r"[*?\[]", given, maxsplit=1)[0]
        if fixed != given:
            return cls(given, fixed[: fixed.rfind("/") + 1], skips_hidden=False)
        if given.endswith("/") or (local and Path(given).is_dir()):
            base = f"{given.rstrip('/')}/"
            return cls(f"{base}*", base, skips_hidden=True)
        if local and not Path(given).exists():
            raise ConfigurationError(
                f"ReadLines({str(path)!r}): there is no such file or folder here; end it with '/' if it will be a "
                "folder, or give a pattern such as 'folder/*.jsonl'"
            )
        return cls(given, f"{posixpath.dirname(given)}/", skips_hidden=False)

    def files(self) -> dict[str, Found]:
        """The files that are there now, by their name below `base`, in the order of their names.

        Raises:
            apache_beam.io.filesystem.BeamIOError: The place cannot be listed.
        """
        [result] = FileSystems.match([self.pattern])
        found = {
            file.path.removeprefix(self.base): Found(file.path, file.size_in_bytes) for file in result.metadata_list
        }
        return {name: found[name] for name in sorted(found) if not (self.skips_hidden and name.startswith("."))}


@dataclass(frozen=True)
class Piece:
    """Complete lines of a file, from one position to the next."""

    lines: list[tuple[int, bytes]]
    """Offset and content, without the line's end."""
    position: Position
    more: bool
    """Whether the limits ended it, not the file."""


def read_piece(file: Found, position: Position, *, max_lines: int, max_bytes: int) -> Piece:
    """The complete lines from a position on, as far as the limits go. One line is read whatever its size.

    Raises:
        Refused: The file is not the one that was read up to this position, or it holds no lines.
        OSError: It cannot be read now.
    """
    if CompressionTypes.detect_compression_type(file.path) != CompressionTypes.UNCOMPRESSED:
        raise Refused("is compressed: its lines cannot be followed; unpack it, or read it with beam.io.ReadFromText")
    if file.size < position.offset:
        raise Refused(_replaced(position))
    sealed = min(position.offset, _SEAL_BYTES)
    with FileSystems.open(file.path, compression_type=CompressionTypes.UNCOMPRESSED) as opened:
        opened.seek(position.offset - sealed)
        before = opened.read(sealed)
        if _seal(before) != position.seal:
            raise Refused(_replaced(position))
        data = opened.read(max_bytes)
        if b"\n" not in data:
            data += opened.readline(LONGEST_LINE)
    if len(data) >= LONGEST_LINE and b"\n" not in data:
        raise Refused(f"has a line of more than {LONGEST_LINE} bytes at {position.offset}")
    lines, offset = [], position.offset
    for line in data.split(b"\n", max_lines)[:-1]:
        lines.append((offset, line.removesuffix(b"\r")))
        offset += len(line) + 1
    length = offset - position.offset
    before = (before + data[:length])[-_SEAL_BYTES:]
    more = bool(lines) and (len(data) >= max_bytes or b"\n" in data[length:])
    return Piece(lines, Position(offset=offset, seal=_seal(before)), more)


def _seal(before: bytes) -> str:
    return hashlib.sha256(before).hexdigest()[:16] if before else ""


def _replaced(position: Position) -> str:
    return (
        f"is not the file any more that was read up to byte {position.offset}: it shrank or was replaced. Files may "
        "only grow; give the new content a new name, and it is read from its beginning"
    )
