"""A load under way: what is fed to it, and what has come of it so far."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.flink.load_check import Verdicts, check, query, read_census
from tests.flink.load_job import OUTCOMES, Event, Line
from tests.flink.load_server import serving

_LOOK_SECONDS = 0.2
_FEED_SECONDS = 0.2
_SETTLED_SECONDS = 5.0
"""Longer than a checkpoint and than the doorbell's pauses: what would come twice has come by then."""


class Feeder:
    """Writes the stream until it is stopped: lines appended to a file, and a new file each minute.

    Args:
        folder: Where the files are; made.
        rate: Events a second.
        keys: How many keys they are spread over.
        seed: Of the order of the keys.
    """

    def __init__(self, folder: Path, *, rate: float, keys: int, seed: int) -> None:
        self.fed: dict[str, str] = {}
        """The key of each event."""
        self._folder = folder
        self._rate = rate
        self._keys = [f"key-{number:03}" for number in range(keys)]
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="feeder", daemon=True)
        folder.mkdir(parents=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the events; a census may follow."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def ask_census(self, number: int) -> None:
        """Asks for what Beam's state has seen of each key."""
        self._write([Event(id=f"census-{number}-{key}", key=key, census=number) for key in self._keys])

    @property
    def keys(self) -> Collection[str]:
        return self._keys

    def _feed(self) -> None:
        started = time.monotonic()
        while not self._stop.wait(_FEED_SECONDS):
            due = int((time.monotonic() - started) * self._rate) - len(self.fed)
            new = {f"event-{len(self.fed) + n:06}": self._random.choice(self._keys) for n in range(due)}
            self.fed |= new
            self._write([Event(id=name, key=key) for name, key in new.items()])

    def _write(self, events: list[Event]) -> None:
        name = f"{int(time.time()) // 60:010}.jsonl"
        with (self._folder / name).open("a") as file:
            file.write("".join(f"{event.model_dump_json()}\n" for event in events))


@dataclass(frozen=True)
class Moment:
    """The load at the moment of a kill."""

    at: float
    """Seconds since 1970."""
    open_runs: int
    """Events that a call was made for, without an outcome."""
    calls: int
    """Requests that the outside world has not answered."""
    victims: frozenset[int]
    """Worker processes that are to die."""
    known: frozenset[int]
    """Worker processes that there are or were."""
    driven: frozenset[str]
    """Open runs whose last call came from a victim."""


class LoadRun:
    """Reads what has come of a load.

    Args:
        folder: That of the load.
        feeder: What is fed to it.
        server: Address of the outside world.
        ledger: The SQLite file, or `None`.
    """

    def __init__(self, folder: Path, feeder: Feeder, server: str, ledger: Path | None) -> None:
        self.folder = folder
        self.feeder = feeder
        self.server = server
        self.ledger = ledger
        self._log = folder / "outside.db"
        self._read = 0
        self._lines: list[Line] = []
        self._emitted: set[str] = set()

    @property
    def job(self) -> list[str]:
        """The arguments of `load_job`, without Beam's options."""
        return [
            f"--events={self.feeder_folder}",
            f"--out={self.folder}",
            f"--server={self.server}",
            f"--ledger={self.ledger or 'none'}",
        ]

    @property
    def feeder_folder(self) -> Path:
        return self.folder / "events"

    def lines(self) -> list[Line]:
        """What the plain sink has seen so far."""
        file = self.folder / OUTCOMES
        if file.exists():
            with file.open("rb") as stream:
                stream.seek(self._read)
                for row in stream:
                    if row.endswith(b"\n"):
                        self._read += len(row)
                        line = Line.model_validate_json(row)
                        self._lines.append(line)
                        self._emitted.add(line.run)
        return self._lines

    def moment(self, victims: Collection[int], workers: Collection[int]) -> Moment:
        """The load now.

        Args:
            victims: The worker processes that are to die.
            workers: All that there are.
        """
        now = time.time()
        self.lines()
        last = dict(query(self._log, "SELECT run, pid FROM calls ORDER BY received"))
        open_runs = {run: pid for run, pid in last.items() if run not in self._emitted}
        return Moment(
            at=now,
            open_runs=len(open_runs),
            calls=self.calls_in_flight(),
            victims=frozenset(victims),
            known=frozenset(last.values()) | frozenset(workers),
            driven=frozenset(run for run, pid in open_runs.items() if pid in victims),
        )

    def next_step(self, moment: Moment) -> float | None:
        """Seconds from a moment to the first call that shows that the victims' work goes on: by a process that is
        new, or for a run that a victim had. What surviving processes do with their own runs does not count."""
        rows = query(self._log, "SELECT run, pid, received FROM calls WHERE received > ? ORDER BY received", moment.at)
        return next((at - moment.at for run, pid, at in rows if _goes_on(moment, run, pid)), None)

    def next_outcome(self, moment: Moment) -> float | None:
        """Seconds to the first outcome that shows the same."""
        lines = (line for line in self.lines() if line.at > moment.at)
        return next((line.at - moment.at for line in lines if _goes_on(moment, line.run, line.pid)), None)

    def calls_in_flight(self) -> int:
        """Requests that the outside world has not answered."""
        return int(query(self._log, "SELECT count(*) FROM calls WHERE answered IS NULL")[0][0])

    def emitted(self) -> int:
        """Events with an outcome."""
        self.lines()
        return len(self._emitted)

    def wait(self, reached: Callable[[], bool], what: str, *, seconds: float, watch: Callable[[], None]) -> None:
        """Waits until something is reached.

        Args:
            reached: Whether it is.
            what: Names it.
            seconds: The deadline.
            watch: Raises when waiting is of no use any more.

        Raises:
            TimeoutError: It was not reached in time.
        """
        if not self._reaches(reached, seconds, watch):
            raise TimeoutError(
                f"no {what} within {seconds:.0f} s; {self.emitted()} of {len(self.feeder.fed)} events have an outcome, "
                f"{self.calls_in_flight()} calls are in flight"
            )

    def _reaches(self, reached: Callable[[], bool], seconds: float, watch: Callable[[], None]) -> bool:
        until = time.monotonic() + seconds
        while not reached():
            watch()
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def finish(self, *, seconds: float, watch: Callable[[], None]) -> Verdicts:
        """Stops feeding, waits until every event has an outcome in Beam's state, and says what went wrong.

        Events that have none, though for `seconds` no event has got one, are lost: a job that was down for long has
        much to catch up with.
        """
        self.feeder.stop()
        fed, before = self.feeder.fed, -1
        while before < self.emitted() < len(fed):
            before = self.emitted()
            self._reaches(partial(self._emitted_more_than, before), seconds, watch)
        until = time.monotonic() + seconds
        for number in itertools.count(1):
            time.sleep(_SETTLED_SECONDS)
            found = check(fed, self._census(number, watch), self.folder, self.ledger)
            if not found.lost or time.monotonic() > until:
                break
        return found

    def _emitted_more_than(self, before: int) -> bool:
        return self.emitted() > before

    def _census(self, number: int, watch: Callable[[], None]) -> dict[str, list[Line]]:
        self.feeder.ask_census(number)
        keys = len(self.feeder.keys)
        self.wait(lambda: len(read_census(self.folder, number)) == keys, "census", seconds=60, watch=watch)
        return read_census(self.folder, number)


def _goes_on(moment: Moment, run: str, pid: int) -> bool:
    return pid not in moment.victims and (pid not in moment.known or run in moment.driven)


@contextmanager
def loading(folder: Path, *, rate: float, keys: int, seed: int, ledger: bool) -> Iterator[LoadRun]:
    """Serves the outside world while the block lasts; the job and the feeder are for the caller to start.

    Args:
        folder: For everything; made.
        rate: Events a second.
        keys: How many keys.
        seed: Of the order of the keys.
        ledger: Whether there is one.
    """
    folder.mkdir(parents=True)
    feeder = Feeder(folder / "events", rate=rate, keys=keys, seed=seed)
    with serving(folder) as address:
        try:
            yield LoadRun(folder, feeder, address, (folder / "ledger.db").absolute() if ledger else None)
        finally:
            feeder.stop()
            (folder / "fed.json").write_text(json.dumps(feeder.fed))
