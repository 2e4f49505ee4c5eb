"""Kills the fraud demo in the middle, starts it again on the same ledger and bank, and counts what went wrong.

    python tests/examples/kill_demo.py --kills 20
    python tests/examples/kill_demo.py --short

Each kill is a SIGKILL of a fresh demo, at a moment that is chosen by what the ledger and the bank hold: with runs
open, with a hold asked for but not made, with a hold made but not answered, and while the program starts or ends. The
demo is then started again and must come to its end with the results of a demo that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300.0
"""Seconds after which a demo that has not ended is a failure."""


@dataclass(frozen=True)
class Hold:
    """A request for a hold that the bank has not answered."""

    key: str
    attempt: int
    card: str
    made: bool


@dataclass(frozen=True)
class Sight:
    """What the ledger and the bank hold at a moment."""

    seconds: float
    """Since the demo was started."""
    ended: int = 0
    """Runs."""
    open: int = 0
    """Runs."""
    answered: int = 0
    """Holds."""
    in_flight: tuple[Hold, ...] = ()


@dataclass(frozen=True)
class Aim:
    """A moment to kill at."""

    name: str
    reached: Callable[[Sight], bool]


@dataclass(frozen=True)
class Demo:
    """A folder with one demo: its ledger, its bank, its output."""

    folder: Path
    events: int
    bank_delay: float

    def start(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "examples.fraud", f"--out={self.folder}", f"--events={self.events}"]
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen([*command, f"--bank-delay={self.bank_delay}"], cwd=ROOT, stdout=log, stderr=log)

    def finish(self) -> float:
        """Runs it to its end and returns the seconds it took."""
        started = time.monotonic()
        with self.start() as process:
            try:
                code = process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        if code:
            raise RuntimeError(f"the demo ended with code {code}:\n{(self.folder / 'log.txt').read_text()[-4000:]}")
        return time.monotonic() - started

    def sight(self, seconds: float) -> Sight:
        runs = self._query("ledger.db", "SELECT count(ending), count(*) - count(ending) FROM runs") or [(0, 0)]
        answered = self._query("bank.db", "SELECT count(answered) FROM requests") or [(0,)]
        in_flight = self._query(
            "bank.db",
            "SELECT idempotency_key, attempt, card, EXISTS (SELECT 1 FROM holds WHERE "
            "holds.idempotency_key = requests.idempotency_key AND holds.attempt = requests.attempt) "
            "FROM requests WHERE answered IS NULL",
        )
        holds = tuple(Hold(key, attempt, card, bool(made)) for key, attempt, card, made in in_flight)
        return Sight(seconds, runs[0][0], runs[0][1], answered[0][0], holds)

    def holds(self) -> dict[str, int]:
        """How often the bank made the hold of each idempotency key."""
        return dict(self._query("bank.db", "SELECT idempotency_key, count(*) FROM holds GROUP BY 1"))

    def asked(self, key: str) -> int:
        """How often the bank was asked for a hold under this key."""
        count: int = self._query("bank.db", "SELECT count(*) FROM requests WHERE idempotency_key = ?", key)[0][0]
        return count

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def results(self) -> dict[str, Any]:
        """What was decided, by run; without the number that the bank gave a hold, which depends on who came first."""
        return {row["run_id"]: {**row["output"], "hold_id": None} for row in self.rows("results.jsonl")}

    def _query(self, name: str, query: str, *values: str) -> list[Any]:
        try:
            with closing(sqlite3.connect(f"file:{self.folder / name}?mode=ro", uri=True, timeout=5)) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error) or "unable to open" in str(error):  # the demo has not made it yet
                return []
            raise


@dataclass
class Trial:
    """One kill and what came of it."""

    aim: str
    at: Sight
    restarted: float = 0.0
    """Seconds that the second program took."""
    holds_twice: int = 0
    holds_missing: int = 0
    events_lost: int = 0
    results_missing: int = 0
    results_other: int = 0
    """Results that differ from those of the demo that was not killed."""
    in_doubt: int = 0
    fates: list[str] = field(default_factory=list)
    """What became of each hold that was in flight."""

    @property
    def good(self) -> bool:
        wrong = (self.holds_twice, self.holds_missing, self.events_lost, self.results_missing, self.results_other)
        return not any(wrong) and not self.in_doubt


def kill(demo: Demo, at: Aim) -> Trial | None:
    """Kills a fresh demo when its moment has come; `None` if it ended before."""
    started = time.monotonic()
    with demo.start() as process:
        while process.poll() is None:
            if at.reached(demo.sight(time.monotonic() - started)):
                process.kill()
                break
            if time.monotonic() - started > LIMIT:
                process.kill()
                raise RuntimeError(f"the demo did not reach {at.name!r} within {LIMIT:.0f} s")
            time.sleep(0.003)  # between two looks
    if process.returncode == 0:
        return None
    if process.returncode > 0:
        raise RuntimeError(f"the demo failed by itself:\n{(demo.folder / 'log.txt').read_text()[-4000:]}")
    return Trial(at.name, demo.sight(time.monotonic() - started))


def finish(trial: Trial, demo: Demo, whole: Demo) -> None:
    """Starts a killed demo again and compares it with one that was not killed."""
    trial.restarted = demo.finish()
    holds, results, expected = demo.holds(), demo.results(), whole.results()
    failures = demo.rows("failures.jsonl")
    lines = len((demo.folder / "payments.jsonl").read_text().splitlines())
    trial.holds_twice = sum(count - 1 for count in holds.values())
    trial.holds_missing = max(0, len(whole.holds()) - len(holds))
    trial.events_lost = lines - len(results) - len(failures) - len(demo.rows("duplicates.jsonl"))
    trial.results_missing = len(expected.keys() - results.keys())
    trial.results_other = sum(results[run] != expected.get(run) for run in results)
    trial.in_doubt = sum(failure["reason"] == "in_doubt" for failure in failures)
    for hold in trial.at.in_flight:
        times, asked = holds.get(hold.key, 0), demo.asked(hold.key)
        before = "made before the kill" if hold.made else "not made before the kill"
        after = "found by reconcile" if asked == 1 else "asked for again"
        trial.fates.append(f"{hold.card}: {before}, {after if times else 'not made'}: {times} hold(s)")


def aim(nth: int, kills: int, whole: Demo, seconds: float, ease: float) -> Aim:
    """A moment of a demo's run; of ten, four with a hold in flight, five with runs open, one at an edge.

    Args:
        nth: The kill, from 0.
        kills: How many there are, spread over the run.
        whole: A demo that was not killed.
        seconds: What that one took.
        ease: 1, or less for a demo that ended before it got there.
    """
    part = ease * (nth + 0.5) / kills
    match nth % 10:
        case 0 | 5:
            return _aim_at_hold(round(part * len(whole.holds()) * 0.8), made=False)
        case 2 | 7:
            return _aim_at_hold(round(part * len(whole.holds()) * 0.8), made=True)
        case 9:
            if nth < kills / 2:
                return Aim(f"after {ease * seconds / 4:.1f} s", lambda sight: sight.seconds >= ease * seconds / 4)
            ended = round(ease * whole.sight(0).ended)
            return Aim(f"after {ended} runs, files to be written", lambda sight: sight.ended >= ended)
        case _:
            return _aim_at_runs(round(part * whole.sight(0).ended * 0.9))


def _aim_at_hold(answered: int, *, made: bool) -> Aim:
    def reached(sight: Sight) -> bool:
        return sight.answered >= answered and any(hold.made == made for hold in sight.in_flight)

    return Aim(f"hold {'made, not answered' if made else 'asked, not made'}, after {answered}", reached)


def _aim_at_runs(ended: int) -> Aim:
    return Aim(f"runs open, after {ended}", lambda sight: sight.ended >= ended and sight.open > 0)


def kill_demos(
    folder: Path, *, kills: int, events: int, bank_delay: float, say: Callable[[str], None] = print
) -> list[Trial]:
    """Carries out the kill test and returns its trials."""
    whole = Demo(folder / "whole", events, bank_delay)
    seconds = whole.finish()
    whole_sight = whole.sight(seconds)
    say(f"Not killed: {whole_sight.ended} runs, {len(whole.holds())} holds, {seconds:.1f} s")
    trials = []
    for nth in range(kills):
        for ease in (1.0, 0.5, 0.0):
            demo = Demo(folder / f"kill-{nth + 1}-{ease}", events, bank_delay)
            trial = kill(demo, aim(nth, kills, whole, seconds, ease))
            if trial is not None:
                break
        else:
            raise RuntimeError(f"kill {nth + 1}: three demos ended before their moment came")
        finish(trial, demo, whole)
        trials.append(trial)
        say(_line(nth + 1, trial))
    return trials


_HEADER = (
    f"{'':>3} {'killed at':<36} {'s':>5} {'ended':>6} {'open':>5} {'holds in flight':>16} {'again s':>8} "
    f"{'twice':>6} {'lost':>5} {'missing':>8} {'other':>6} {'doubt':>6}"
)


def _line(number: int, trial: Trial) -> str:
    at = trial.at
    return "\n".join(
        [
            f"{number:>3} {trial.aim:<36} {at.seconds:>5.1f} {at.ended:>6} {at.open:>5} {len(at.in_flight):>16} "
            f"{trial.restarted:>8.1f} {trial.holds_twice:>6} {trial.events_lost:>5} {trial.results_missing:>8} "
            f"{trial.results_other:>6} {trial.in_doubt:>6}",
            *(f"      {fate}" for fate in trial.fates),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if nothing went wrong in any trial."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kills", metavar="N", type=int, default=20, help="(%(default)s)")
    made.add_argument("--short", action="store_true", help="three kills of a small demo")
    made.add_argument("--events", metavar="N", type=int, default=1000, help="payments of a demo (%(default)s)")
    made.add_argument("--bank-delay", metavar="SECONDS", type=float, default=0.3, help="(%(default)s)")
    made.add_argument("--keep", metavar="FOLDER", help="where the demos' files stay; else they are deleted")
    arguments = made.parse_args(argv)
    kills, events = (3, 200) if arguments.short else (arguments.kills, arguments.events)
    with tempfile.TemporaryDirectory(prefix="kill-demo-") as temporary:
        folder = Path(arguments.keep or temporary)
        print(_HEADER, flush=True)
        trials = kill_demos(
            folder,
            kills=kills,
            events=events,
            bank_delay=arguments.bank_delay,
            say=lambda line: print(line, flush=True),
        )
    with_runs = sum(trial.at.open > 0 for trial in trials)
    with_holds = sum(bool(trial.at.in_flight) for trial in trials)
    print(
        f"{len(trials)} kills, {with_runs} with runs open, {with_holds} with a hold in flight: "
        f"holds made twice {sum(trial.holds_twice for trial in trials)}, "
        f"holds missing {sum(trial.holds_missing for trial in trials)}, "
        f"events lost {sum(trial.events_lost for trial in trials)}, "
        f"results missing {sum(trial.results_missing for trial in trials)}, "
        f"results that differ {sum(trial.results_other for trial in trials)}, "
        f"in doubt {sum(trial.in_doubt for trial in trials)}"
    )
    return 0 if all(trial.good for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
