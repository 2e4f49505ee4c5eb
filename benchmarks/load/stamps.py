"""When things happened in the pipelines: lines in files, which the program that measures follows."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import apache_beam as beam

_BEGUN = "begun.txt"
_ENDED = "ended.txt"
_FAILED = "failed.txt"


class EventFailed(RuntimeError):
    """An event went to `failures`; the message says why."""


def begin(folder: Path, burst: str) -> None:
    """Notes that the first event of a burst comes."""
    _append(folder / _BEGUN, f"{burst} {time.time()}\n")


def end(folder: Path, event: str, why: str) -> None:
    """Notes that an event failed."""
    _append(folder / _FAILED, f"{event} {' '.join(why.split())}\n")


class Stamp(beam.DoFn):
    """A sink that notes when each event came out.

    Args:
        folder: For the notes.
    """

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / _ENDED)
        self._file: int | None = None

    def setup(self) -> None:
        """Opens the file."""
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def teardown(self) -> None:
        """Closes it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def note(self, event: str) -> None:
        """Notes an event, in one write so that lines of several processes do not mix."""
        assert self._file is not None
        os.write(self._file, f"{event} {time.time()}\n".encode())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


class Stamps:
    """Follows the notes of one pipeline.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read = 0
        self._ended: dict[str, dict[str, float]] = {}

    def begun(self, burst: str) -> float:
        """When the first event of a burst came, in seconds since 1970: the first time, if it came again."""
        lines = (self._folder / _BEGUN).read_text().splitlines()
        return min(float(at) for name, at in map(str.split, lines) if name == burst)

    def ended(self, burst: str) -> dict[str, float]:
        """When each event of a burst came out, in seconds since 1970, of those that have.

        Raises:
            EventFailed: An event of any burst failed.
        """
        failed = self._folder / _FAILED
        if failed.exists():
            raise EventFailed(failed.read_text().splitlines()[0])
        path = self._folder / _ENDED
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.decode().splitlines():
                event, at = line.split()
                self._ended.setdefault(event.rpartition("-")[0], {}).setdefault(event, float(at))
        return self._ended.get(burst, {})


def _append(path: Path, line: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
