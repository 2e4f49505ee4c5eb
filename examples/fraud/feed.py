"""Payments as they come in: a thread that appends lines to files in a folder, at a rate, until it is stopped.

The stream of made-up payments has no end and is the same each time it is made, so a feeder that is started again on
its folder goes on where the files end.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import count, islice
from pathlib import Path
from types import TracebackType

from examples.fraud.generator import DAYS, generate

LINES_PER_FILE = 1000
ROUND = 200
"""Payments made at a time: few, so that fraud does not wait for long."""


def endless_payments(seed: int = 1) -> Iterator[str]:
    """Lines of payments, without end: one made-up file after the other, each some days after the one before."""
    for nth in count():
        for line in generate(ROUND, seed + nth).lines:
            yield _moved(line, nth)


def _moved(line: str, nth: int) -> str:
    """A line of the nth file, with ids of its own."""
    line = line.replace('"t-', f'"t-{nth}-')
    try:
        row = json.loads(line)
        row["time"] = (datetime.fromisoformat(row["time"]) + timedelta(days=nth * DAYS)).isoformat()
    except ValueError:  # some are no JSON, and some have no time, as in real files
        return line
    return json.dumps(row, sort_keys=True)


class Feeder:
    """Appends lines to `payments-00000.jsonl` and so on while the block runs; a context manager.

    Args:
        folder: Where the files are; made if it is not there.
        lines: All lines from the first on. As many as the files hold already are left out.
        rate: Lines a second.
    """

    def __init__(self, folder: str | Path, lines: Iterable[str], rate: float) -> None:
        self.folder = Path(folder)
        self.rate = rate
        self._lines = lines
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="feeder", daemon=True)

    def __enter__(self) -> Feeder:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()

    def wait(self) -> None:
        """Waits until there are no more lines."""
        self._thread.join()

    def _feed(self) -> None:
        written = self._written()
        started = time.monotonic()
        for number, line in enumerate(islice(self._lines, written, None)):
            if self._stopped.wait(max(0.0, started + number / self.rate - time.monotonic())):
                return
            path = self.folder / f"payments-{(written + number) // LINES_PER_FILE:05}.jsonl"
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    def _written(self) -> int:
        """How many lines there are. A line that a killed feeder left without its end gets one."""
        files = sorted(self.folder.glob("payments-*.jsonl"))
        if files and (content := files[-1].read_bytes()) and not content.endswith(b"\n"):
            with files[-1].open("ab") as file:
                file.write(b"\n")
        return sum(path.read_bytes().count(b"\n") for path in files)
