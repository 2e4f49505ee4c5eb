"""The store without Kafka: files in a folder, to which lines are only ever appended."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from beam_agents.errors import ConfigurationError
from beam_agents.io.ingress.body import Accepted
from beam_agents.io.ingress.store import Store, StoreDown, TooLarge
from beam_agents.io.tail import LONGEST_LINE

_LOG = logging.getLogger(__name__)

_FILE_BYTES = 64_000_000
"""After which the next file is begun."""
_MOST_WAITING = 10_000
_NAME = re.compile(r"events-(\d{15})\.jsonl")


class _Waiting(NamedTuple):
    lines: bytes
    stored: asyncio.Future[None]


class FolderStore(Store):
    """Appends events to files, and waits until the disk has them; requests that wait share the waiting.

    A file is never written by two processes: each begins one of its own, also after an error, so what a crash tore
    stays a line without an end, which `ReadIngress` never reads and of which no client was told that it was stored.
    The files' names are in the order of time.

    Args:
        folder: It is made if it is missing. One server has it at a time.
        file_bytes: After which the next file is begun.
    """

    def __init__(self, folder: str | Path, *, file_bytes: int = _FILE_BYTES) -> None:
        self._folder = Path(folder).absolute()
        self.place = f"folder {str(self._folder)!r}"
        self._file_bytes = file_bytes
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="beam-agents-store", daemon=True)
        self._lock: BinaryIO | None = None
        self._file: BinaryIO | None = None
        self._size = 0
        self._failed = False

    async def open(self) -> None:
        """Takes the folder."""
        self._loop = asyncio.get_running_loop()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self._folder / ".lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"{self.place} belongs to another server that runs: give each its own") from error
        except OSError as error:
            raise ConfigurationError(f"{self.place} cannot be used: {error.strerror}") from error
        self._thread.start()

    async def append(self, events: Sequence[Accepted]) -> None:
        """Writes lines, and waits for the disk."""
        lines = [_line(event) for event in events]
        longest = max(map(len, lines), default=0)
        if longest >= LONGEST_LINE:
            raise TooLarge(f"an event takes {longest} bytes in the store, which keeps less than {LONGEST_LINE}")
        waiting = _Waiting(b"".join(lines), self._loop.create_future())
        try:
            self._queue.put_nowait(waiting)
        except queue.Full as error:
            raise StoreDown(f"{self.place}: too many requests wait for it") from error
        await waiting.stored

    async def ready(self) -> bool:
        """Whether the last write succeeded; if it did not, whether one would now. Nobody sends while it says no."""
        if self._failed:
            self._failed = not await asyncio.to_thread(self._can_be_written)
        return not self._failed

    async def close(self) -> None:
        """Writes what waits."""
        if self._thread.is_alive():
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
        for file in (self._file, self._lock):
            if file is not None:
                file.close()

    def _work(self) -> None:
        ended = False
        while not ended:
            group = [self._queue.get()]
            while len(group) < _MOST_WAITING:
                try:
                    group.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = None in group
            waiting = [one for one in group if one is not None]
            if waiting:
                self._settle(waiting, self._write(b"".join(one.lines for one in waiting)))

    def _write(self, lines: bytes) -> str | None:
        """Why it could not be written."""
        try:
            if self._file is None or self._size >= self._file_bytes:
                self._begin()
            assert self._file is not None
            self._file.write(lines)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            _LOG.error("%s cannot be written: %s", self.place, error)
            self._abandon()
            self._failed = True
            return f"{self.place}: {error.strerror}"
        self._size += len(lines)
        self._failed = False
        return None

    def _can_be_written(self) -> bool:
        probe = self._folder / ".probe"
        try:
            with probe.open("wb") as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
            probe.unlink()
        except OSError:
            return False
        return True

    def _begin(self) -> None:
        self._abandon()
        taken = [int(found[1]) for path in self._folder.iterdir() if (found := _NAME.fullmatch(path.name))]
        number = max(time.time_ns() // 1_000_000, 1 + max(taken, default=0))
        self._file = (self._folder / f"events-{number:015d}.jsonl").open("xb")
        self._size = 0
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # else a power failure may lose the file's name
        finally:
            os.close(folder)

    def _abandon(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:  # it writes what is left in its buffer, once more
                _LOG.debug("%s cannot be closed", file.name, exc_info=True)

    def _settle(self, waiting: list[_Waiting], why: str | None) -> None:
        def settle() -> None:
            for one in waiting:
                if not one.stored.done():
                    one.stored.set_result(None) if why is None else one.stored.set_exception(StoreDown(why))

        self._loop.call_soon_threadsafe(settle)


def _line(event: Accepted) -> bytes:
    # Not in ASCII, which would take three times the room for most of the world's letters.
    return f"{json.dumps(event._asdict(), ensure_ascii=False, separators=(',', ':'))}\n".encode()
