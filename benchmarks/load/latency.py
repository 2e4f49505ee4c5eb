"""What the engine adds to the time between two calls, and between a run's end and its emission.

    python -m benchmarks.load.latency --out FILE.json [--runners flink,direct]

- From the moment at which the chat server has sent the first answer of a run until it has the run's next request; the
  tool in between does nothing. A thousand runs are in flight, and each call takes 0.2 to 20 seconds. They come as one
  burst: what is answered while it is being opened is counted apart.
- On Flink also from the end of a run, as the ledger has it, to a sink, while so many runs end in a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

from benchmarks.load.job import append
from benchmarks.load.runners import RUNNERS, Job, Runner
from benchmarks.load.server import ROOT, ChatServer, Counter, Exchange
from benchmarks.load.stamps import Stamps
from benchmarks.load.workload import Burst

SHORTEST, LONGEST = 0.2, 20.0
"""Seconds of a model call."""
IN_FLIGHT = 1_000
ENDS_A_SECOND = (100, 200)

_LOG = logging.getLogger(__name__)
_QUICK = 1.0
"""Seconds of a model call, about, while ends are measured."""
_FULL = 0.95
"""Of the most calls in flight: a burst of runs has been opened."""
_FEED_SECONDS = 20.0
_LONGER = 180.0
_PACE = 0.1
_ID = re.compile(rb'id\\":\s*\\"([^"\\]+)')


@dataclass
class Gaps:
    """What a timing server has noted."""

    answered: dict[bytes, float] = field(default_factory=dict)
    """When a run was last answered, on a clock."""
    found: list[tuple[float, int]] = field(default_factory=list)
    """Seconds from an answer to the next request of its run, and the calls in flight then."""


class Timing(Exchange):
    """A connection that notes how long after a run's answer its next request comes; `GET /gaps` has them."""

    def __init__(self, counter: Counter, gaps: Gaps) -> None:
        super().__init__(counter)
        self._gaps = gaps
        self._run = b""

    def _take(self, target: str, body: bytes) -> None:
        came = time.perf_counter()
        named = _ID.search(body)
        self._run = named[1] if named else b""
        if target == "/gaps":
            self._write(json.dumps(self._gaps.found).encode())
            return
        if target.startswith("/reset"):
            self._gaps.answered.clear()
            self._gaps.found.clear()
        answered = self._gaps.answered.pop(self._run, None)
        if answered is not None:
            self._gaps.found.append((came - answered, self._counter.in_flight))
        super()._take(target, body)

    def _write(self, body: bytes, status: bytes = b"200 OK") -> None:
        super()._write(body, status)
        if self._run:  # a client waits for its answer before it sends the next request of a connection
            self._gaps.answered[self._run] = time.perf_counter()


def gaps(server: ChatServer) -> list[tuple[float, int]]:
    """Seconds between an answer and the next request of its run, and how many calls were in flight then.

    Args:
        server: One of this module.
    """
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        server.base_url.removesuffix("/v1") + "/gaps", timeout=30
    ) as answer:
        return [(seconds, in_flight) for seconds, in_flight in json.load(answer)]


def percentiles(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    """The figures `name_ms_p50` and `name_ms_p99` of some times."""
    if len(seconds) < 2:
        return {f"{name}_ms_p50": None, f"{name}_ms_p99": None}
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {f"{name}_ms_p50": 1_000 * cuts[49], f"{name}_ms_p99": 1_000 * cuts[98]}


def between_calls(
    runner: Runner,
    server: ChatServer,
    runs: int,
    *,
    feed: bool,
    shortest: float = SHORTEST,
    longest: float = LONGEST,
) -> dict[str, float | None]:
    """From an answer to the next request of its run, with runs in flight, and while they are opened.

    Args:
        runner: Where.
        server: One of this module.
        runs: How many are in flight.
        feed: Whether new events take the place of runs that end; else it is one burst.
        shortest: Seconds of a model call at least.
        longest: At most.
    """
    middle = (shortest + longest) / 2
    server.reset()
    with runner.start("server", server=server.base_url) as job:
        server.reset(middle, (longest - shortest) / (longest + shortest))
        _feed(job, "first", [runs])
        if feed:
            a_step = runs / (2 * middle) * _PACE
            steps = round(_FEED_SECONDS / _PACE)
            _feed(job, "more", [round((n + 1) * a_step) - round(n * a_step) for n in range(steps)])
        stats = server.stats()
        opening, after = in_phases(gaps(server), runs)
    _LOG.info("%s: %s next requests, at most %s in flight", runner.name, len(after), stats.most_in_flight)
    return (
        {"most_in_flight": stats.most_in_flight}
        | percentiles("answer_to_next_request", after)
        | percentiles("answer_to_next_request_while_a_burst_opens", opening)
    )


def in_phases(noted: Sequence[tuple[float, int]], runs: int) -> tuple[list[float], list[float]]:
    """What `gaps` says of the time in which the runs begin, and of the time after, while half of them are in flight."""
    most = max((in_flight for _, in_flight in noted), default=0)
    full = next((n for n, (_, in_flight) in enumerate(noted) if in_flight >= _FULL * most), 0)
    return (
        [seconds for seconds, _ in noted[:full]],
        [seconds for seconds, in_flight in noted[full:] if in_flight >= runs / 2],
    )


def to_emission(runner: Runner, server: ChatServer, rate: int) -> dict[str, float | None]:
    """From the end of runs in the ledger to the sink behind the agent, while so many a second end.

    Args:
        runner: Where, of unbounded input.
        server: One of this module.
        rate: Events, and so ends, a second.
    """
    server.reset()
    with runner.start("server", server=server.base_url) as job:
        server.reset(_QUICK, 0.5)
        seen = _feed(job, f"rate{rate}", [round(rate * _PACE)] * round(_FEED_SECONDS / _PACE))
        with closing(sqlite3.connect(f"file:{job.folder / 'ledger.db'}?mode=ro", uri=True, timeout=10)) as ledger:
            rows = ledger.execute("SELECT run_id, closed_at FROM runs").fetchall()
    closed = {run: at / 1e6 for run, at in rows if run in seen}
    late = [seen[run] - at for run, at in closed.items()]
    ends = len(closed) / (max(closed.values()) - min(closed.values()))
    _LOG.info("%s: %s ends, %.0f a second", runner.name, len(late), ends)
    return {f"ends_a_second_{rate}": ends} | percentiles(f"end_to_emission_at_{rate}", late)


def _feed(job: Job, name: str, steps: Sequence[int]) -> dict[str, float]:
    """Gives a job events at a steady pace, and waits until all came out; when each did."""
    stamps, wanted = Stamps(job.folder), dict[str, int]()
    began = time.monotonic()
    for nth, events in enumerate(steps):
        time.sleep(max(0.0, began + nth * _PACE - time.monotonic()))
        if events:
            wanted[f"{name}{nth:04}"] = events
            append(job.folder, Burst(id=f"{name}{nth:04}", events=events))
    seen: dict[str, float] = {}
    until = time.monotonic() + _LONGER
    for burst, events in wanted.items():
        while len(ended := stamps.ended(burst)) < events:
            job.watch()
            if time.monotonic() > until:
                raise TimeoutError(f"{len(ended)} of {events} events of {burst!r} came out")
            time.sleep(_PACE)
        seen |= ended
    return seen


def measure(
    out: Path,
    *,
    runners: Sequence[str] = ("flink", "direct"),
    runs: int = IN_FLIGHT,
    rates: Sequence[int] = ENDS_A_SECOND,
) -> dict[str, float | None]:
    """What the engine adds.

    Args:
        out: Folder for what is left over.
        runners: Of them `direct` gets one burst, and says nothing of emission: it emits when a bundle has ended.
        runs: In flight.
        rates: Ends a second.
    """
    figures: dict[str, float | None] = {}
    with running_timing_server() as server:
        for name in runners:
            bounded = name == "direct"
            with RUNNERS[name](out, ()) as runner:
                measured = between_calls(runner, server, runs, feed=not bounded)
                for rate in () if bounded else rates:
                    measured |= to_emission(runner, server, rate)
            figures |= {f"{name}_{figure}": value for figure, value in measured.items()}
    return figures


@contextmanager
def running_timing_server() -> Iterator[ChatServer]:
    """A chat server that notes how long after an answer the next request comes, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load.latency", "--serve"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError("the chat server did not start")
            yield ChatServer(url)
        finally:
            process.terminate()


async def _serve() -> None:
    counter, noted = Counter(), Gaps()
    server = await asyncio.get_running_loop().create_server(
        lambda: Timing(counter, noted), "127.0.0.1", 0, backlog=16_384
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FILE.json", type=Path, help="for the figures")
    parser.add_argument("--runners", type=lambda text: text.split(","), default=["flink", "direct"])
    parser.add_argument("--serve", action="store_true", help="be only the chat server, on a free port")
    given = parser.parse_args(argv)
    if given.serve:
        asyncio.run(_serve())
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    _LOG.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        written = json.dumps(measure(Path(scratch), runners=given.runners), indent=1)
    if given.out is not None:
        given.out.write_text(written + "\n")
    print(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
