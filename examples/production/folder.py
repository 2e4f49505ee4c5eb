"""The folder where an example notes what runs, so that its other commands find it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from runners.flink.cluster import FlinkCluster


class Running(BaseModel):
    """What other commands need to know; stands in a file that only its owner may read."""

    pid: int
    """Of the program that holds it all."""
    keep: bool
    folders: list[Path] = []
    """The servers' own, which are left behind when that program is killed."""
    servers: str = ""
    """Kafka's; empty where there is none."""
    postgres: str = ""
    """URL of PostgreSQL for its administrator, without a database; empty where there is none."""
    urls: dict[str, str] = {}
    """Of programs, by their names."""
    token: str = ""
    """Opens the doors of programs."""
    pids: dict[str, int] = {}
    """Of servers and programs, by their names."""
    job: str = ""
    """Flink's id of it; empty until it runs."""

    def database(self, name: str) -> str:
        """URL of a database, for its administrator."""
        return f"{self.postgres}/{name}"


class Folder:
    """Where everything is noted.

    Args:
        path: The folder; made by `held`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()

    @property
    def flink(self) -> Path:
        """The cluster's folder."""
        return self.path / "flink"

    @property
    def work(self) -> Path:
        """For the logs and files of programs; emptied at each start."""
        return self.path / "work"

    def running(self) -> Running | None:
        """What was noted last; `None` if nothing was, or it was ended."""
        try:
            return Running.model_validate_json(self._note.read_bytes())
        except FileNotFoundError:
            return None

    def note(self, running: Running) -> None:
        """Writes it down."""
        unfinished = self._note.with_suffix(".part")
        unfinished.touch(mode=0o600)
        unfinished.write_text(running.model_dump_json())
        unfinished.replace(self._note)

    @contextmanager
    def held(self, *, wait: bool = False) -> Iterator[bool]:
        """Holds the folder, unless another program does; whether it is held.

        Args:
            wait: Waits until no other program holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as lock:  # ends with this process, however that ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def clear(self) -> None:
        """Ends what a program that was killed left running, and deletes what it left outside this folder."""
        running = self.running()
        if self.flink.is_dir():
            FlinkCluster(self.flink).down()
        for folder in running.folders if running else []:
            shutil.rmtree(folder, ignore_errors=True)
        self._note.unlink(missing_ok=True)

    def leave(self, *, keep: bool) -> None:
        """As `clear`, and deletes what was made here.

        Args:
            keep: But for logs, checkpoints, and what was saved.
        """
        self.clear()
        if not keep:
            shutil.rmtree(self.flink, ignore_errors=True)
            shutil.rmtree(self.work, ignore_errors=True)
        self._lock.unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    @property
    def _note(self) -> Path:
        return self.path / "running.json"

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"
