"""Measures what the engine costs under load, and writes it down: `make bench OUT=folder`.

    python -m benchmarks.load --out FOLDER [--runners flink,prism,direct] [--parts at-once,in-flight] [--curve]

Both sides of each ratio run in turn, on the same runner, with the same source and options; figures are medians.
FOLDER/bench.json gets an object for each runner and for each part that has none; a table is printed. Parts on a runner:

- at-once: the engine's own cost, with a model in the process, against a bare stateful DoFn;
- server: the same with a chat server that answers at once;
- in-flight: calls of 2 s, 400 and 2,000 events at once, over raw aiohttp doing the same calls.

Parts without: client (a model request over raw aiohttp), flink-agents (Apache Flink Agents with the same server),
steps, waiting, memory, latency. Options that this program does not know go to Beam.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load import client, figures, parts
from benchmarks.load.runners import RUNNERS, Runner, flink
from benchmarks.load.server import ChatServer, running_server

_ON_RUNNER: dict[str, Callable[[Runner, ChatServer, parts.Wanted], parts.Figures]] = {
    "at-once": parts.at_once,
    "server": parts.through_server,
    "in-flight": parts.in_flight,
}
_ALONE = {"client": "client", "flink-agents": "flink_agents", "steps": "steps"} | {
    name: name for name in ("waiting", "memory", "latency")
}
"""Parts without a runner, and the names of their objects in `bench.json`."""

_CURVE = (10, 100, 1_000, 10_000)
_RIVAL_EVENTS = 500


class Bench:
    """One run of the program.

    Args:
        folder: For `bench.json`.
        scratch: For what is deleted in the end.
        server: The chat server.
        wanted: How much is measured.
        options: Of the pipelines.
    """

    def __init__(
        self, folder: Path, scratch: Path, server: ChatServer, wanted: parts.Wanted, options: Sequence[str]
    ) -> None:
        self._folder = folder
        self._scratch = scratch
        self._server = server
        self._wanted = wanted
        self._options = options
        self.failed: list[str] = []
        """What went wrong."""
        self.written: dict[str, Any] = {
            "machine": figures.machine(),
            "load_before": figures.load(),
            "repeats": wanted.repeats,
            "beam_options": list(options),
        }

    def on_runner(self, name: str, chosen: Iterable[str], *, curve: bool) -> None:
        """Measures parts on a runner."""
        self._write(name, dict.fromkeys(figures.REQUIRED))
        with RUNNERS[name](self._scratch, self._options) as runner:
            for part in chosen:
                self._try(name, part, partial(_ON_RUNNER[part], runner, self._server, self._wanted))
            if curve:
                self._try(name, "curve", partial(parts.curve, runner, self._server, _CURVE, "curve"))
        if curve and name == "flink":
            with flink(self._scratch, self._options, parallelism=2, slots=1) as runner:
                prefix = "curve_parallelism_2"
                self._try(name, prefix, partial(parts.curve, runner, self._server, _CURVE, prefix))

    def alone(self, part: str) -> None:
        """Measures a part that needs no runner."""
        self._server.reset()
        measure: Callable[[], Mapping[str, Any]]
        if part == "client":
            measure = partial(client.measure, self._server.base_url, self._wanted.repeats)
        elif part == "flink-agents":
            measure = self._flink_agents
        elif part == "memory":
            from benchmarks.load import memory

            measure = partial(memory.measure, self._scratch, sessions=self._wanted.sessions)
        else:
            measure = partial(import_module(f"benchmarks.load.{part}").measure, self._scratch)
        self._write(_ALONE[part], {})
        self._try(_ALONE[part], part, measure)

    def _try(self, name: str, part: str, measure: Callable[[], Mapping[str, Any]]) -> None:
        """Measures a part; one that goes wrong is written down, and the next is tried."""
        parts.LOG.info("%s: %s", name, part)
        try:
            measured = measure()
        except Exception as error:
            parts.LOG.exception("%s: %s went wrong", name, part)
            self.failed.append(f"{name}: {part}: {error}")
            self.written["failed"] = self.failed
            measured = {}
        self._write(name, self.written[name] | dict(measured))

    def compare(self, runners: Iterable[str]) -> None:
        """Fills in the ratios to Apache Flink Agents, if both sides were measured."""
        rival = self.written.get("flink_agents", {}).get("events_per_s")
        for name in runners:
            ours = self.written[name].get("events_per_s_mock")
            if rival and ours:
                self._write(name, self.written[name] | {"events_per_s_over_flink_agents": ours / rival})

    def _flink_agents(self) -> dict[str, Any]:
        from benchmarks.load.rivals_flink_agents import events_per_s

        events = min(_RIVAL_EVENTS, self._wanted.events)
        measured = [events_per_s(self._server.base_url, events) for _ in range(self._wanted.repeats)]
        rates = [rate for rate in measured if rate is not None]
        return {"events_per_s": median(rates) if rates else None, "events_per_s_all": rates}

    def _write(self, name: str, measured: dict[str, Any]) -> None:
        self.written[name] = figures.rounded(measured)
        self.written["load_after"] = figures.load()
        (self._folder / "bench.json").write_text(json.dumps(self.written, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*_ON_RUNNER, *_ALONE]
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="for bench.json")
    parser.add_argument("--runners", type=_of(RUNNERS), default=list(RUNNERS), help=f"({','.join(RUNNERS)})")
    parser.add_argument("--parts", type=_of(every), default=every, help="(all)")
    parser.add_argument("--repeats", type=int, default=5, help="of each side (%(default)s)")
    parser.add_argument("--events", type=int, default=2_000, help="in a burst answered at once (%(default)s)")
    parser.add_argument("--sessions", type=int, default=50_000, help="that are idle, in memory (%(default)s)")
    parser.add_argument("--curve", action="store_true", help=f"also {', '.join(map(str, _CURVE))} runs in flight")
    given, options = parser.parse_known_args(argv)
    if min(given.repeats, given.events, given.sessions) < 1:
        parser.error(
            f"--repeats={given.repeats}, --events={given.events} and --sessions={given.sessions} must be 1 or more"
        )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    parts.LOG.setLevel(logging.INFO)
    folder = given.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    on_runner = [part for part in given.parts if part in _ON_RUNNER]
    alone = [part for part in given.parts if part in _ALONE]
    runners = given.runners if on_runner or given.curve else []
    wanted = parts.Wanted(repeats=given.repeats, events=given.events, sessions=given.sessions)
    with tempfile.TemporaryDirectory(dir=folder, prefix="scratch-") as scratch, running_server() as server:
        bench = Bench(folder, Path(scratch), server, wanted, options)
        for name in runners:
            bench.on_runner(name, on_runner, curve=given.curve)
        for part in alone:
            bench.alone(part)
        bench.compare(runners)
    print(figures.tables(bench.written, [[*runners], *([_ALONE[part]] for part in alone)]))
    print(f"load average before {bench.written['load_before']}, after {figures.load()}")
    for failed in bench.failed:
        print(f"went wrong: {failed}")
    return 1 if bench.failed else 0


def _of(names: Iterable[str]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        wrong = [name for name in text.split(",") if name not in names]
        if wrong:
            raise argparse.ArgumentTypeError(f"there is no {wrong[0]!r}; there is: {', '.join(names)}")
        return text.split(",")

    return chosen


if __name__ == "__main__":
    sys.exit(main())
