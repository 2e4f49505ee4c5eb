"""What went wrong in a load: compares what was fed, what was emitted, what was recorded and what was done."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from beam_agents.events import FailureReason
from tests.flink.load_job import CENSUS, OUTCOMES, Line, Verdict

_EXAMPLES = 20


class Verdicts(BaseModel):
    """The findings. All but those named as allowed should be zero."""

    events: int
    """That were fed."""
    results: int = 0
    """In Beam's own state."""
    failures: dict[str, int] = {}
    """In Beam's own state, by reason."""
    lost: int = 0
    """Events without an outcome in Beam's own state."""
    lost_events: list[str] = []
    """The first of them."""
    twice: int = 0
    """Outcomes that Beam's own state has seen beyond the first: what a transactional sink would see as doubled."""
    duplicates: int = 0
    """Events that the source brought twice."""
    strangers: int = 0
    """Outcomes of events that were never fed."""
    contradictory: int = 0
    """Events with two different outcomes, among all lines that the plain sink ever saw."""
    lines_again: int = 0
    """Allowed: lines of the plain sink that were there before, after a restore."""
    state_wrong: int = 0
    """Results whose count of the key's events is not 1, 2, 3 ... without a gap or a repetition."""
    once_twice: int = 0
    """`once` effects beyond the first of a call."""
    once_missing: int = 0
    """Results whose `once` effect, as the result names it, was never made."""
    idempotent_twice: int = 0
    """`idempotent` effects beyond the first of a call, which can only have had another key."""
    in_doubt: int = 0
    paid_again: int | None = None
    """Model requests made after their outcome had been recorded; `None` without a ledger."""
    calls_again: int | None = None
    """Tool calls made after their outcome had been recorded; `None` without a ledger."""
    answers_paid: int = 0
    """Model requests, all of them."""
    answers_paid_twice: int = 0
    """Model requests beyond the first of each. With a ledger those of the window between answer and record are allowed,
    the others are in `paid_again`."""
    calls_twice: dict[str, int] = {}
    """Requests of tools beyond the first of each, by kind; allowed within the window."""
    reconciled: int = 0
    """Allowed: questions what became of a `once` call."""

    def wrong(self) -> dict[str, int]:
        """The findings that break a promise, those that are zero left out."""
        names = (
            "lost",
            "twice",
            "duplicates",
            "strangers",
            "contradictory",
            "state_wrong",
            "once_twice",
            "once_missing",
            "idempotent_twice",
            "in_doubt",
            "paid_again",
            "calls_again",
        )
        found = {name: getattr(self, name) or 0 for name in names} | {
            f"failures: {reason}": count for reason, count in self.failures.items() if reason != FailureReason.IN_DOUBT
        }
        return {name: count for name, count in found.items() if count}


class _Request(NamedTuple):
    kind: str
    name: str
    run: str
    step: str
    received: float


def read_lines(file: Path) -> list[Line]:
    """The lines that the plain sink has seen so far."""
    return [Line.model_validate(row) for row in _rows(file)]


def read_census(folder: Path, number: int) -> dict[str, list[Line]]:
    """What Beam's state had seen of each key at a census; keys that have not answered are missing."""
    rows = [row for row in _rows(folder / CENSUS) if row["census"] == number]
    return {row["key"]: [Line.model_validate(line) for line in row["lines"]] for row in rows}


def check(fed: Mapping[str, str], census: Mapping[str, list[Line]], folder: Path, ledger: Path | None) -> Verdicts:
    """Compares.

    Args:
        fed: The key of each event.
        census: What Beam's state has seen of each key.
        folder: Where the plain sink and the log of the outside world are.
        ledger: The SQLite file, if there was one.
    """
    found = Verdicts(events=len(fed))
    _check_emitted(found, fed, [line for lines in census.values() for line in lines])
    _check_plain(found, read_lines(folder / OUTCOMES))
    _check_done(found, folder / "outside.db", census)
    if ledger is not None:
        _check_recorded(found, folder / "outside.db", ledger)
    return found


def _check_emitted(found: Verdicts, fed: Mapping[str, str], lines: Iterable[Line]) -> None:
    outcomes: defaultdict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.kind == "duplicate":
            found.duplicates += 1
        else:
            outcomes[line.run].append(line)
    lost = sorted(fed.keys() - outcomes.keys())
    found.lost, found.lost_events = len(lost), lost[:_EXAMPLES]
    found.strangers = len(outcomes.keys() - fed.keys())
    found.twice = sum(len(seen) - 1 for seen in outcomes.values())
    first = [seen[0] for seen in outcomes.values()]
    found.failures = dict(Counter(line.kind for line in first if line.kind != "result"))
    found.in_doubt = found.failures.get(FailureReason.IN_DOUBT, 0)
    results = [line for line in first if line.kind == "result"]
    found.results = len(results)
    counts: defaultdict[str, set[int]] = defaultdict(set)
    events = Counter(fed.values())
    for line in results:
        nth = Verdict.model_validate_json(line.outcome).nth
        found.state_wrong += nth in counts[line.key] or not 1 <= nth <= events[line.key]
        counts[line.key].add(nth)


def _check_plain(found: Verdicts, lines: list[Line]) -> None:
    outcomes: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for line in lines:
        if line.kind != "duplicate":
            outcomes[line.run][line.kind, line.outcome] += 1
    found.contradictory = sum(len(seen) > 1 for seen in outcomes.values())
    found.lines_again = sum(seen.total() - 1 for seen in outcomes.values())


def _check_done(found: Verdicts, log: Path, census: Mapping[str, list[Line]]) -> None:
    # By run and tool, not by idempotency key alone: a call that came with another key would be missed.
    for kind, again in query(log, "SELECT kind, count(*) - count(DISTINCT run || ' ' || name) FROM applied GROUP BY 1"):
        if kind == "once":
            found.once_twice = again
        else:
            found.idempotent_twice = again
    receipts = dict(query(log, "SELECT receipt, run FROM applied WHERE kind = 'once'"))
    for line in (line for lines in census.values() for line in lines if line.kind == "result"):
        found.once_missing += receipts.get(Verdict.model_validate_json(line.outcome).charge) != line.run
    asked = Counter(request[:4] for request in _requests(log))
    twice = Counter[str]()
    for (kind, *_), times in asked.items():
        twice[kind] += times - 1
        found.answers_paid += times if kind == "model" else 0
    found.answers_paid_twice = twice.pop("model", 0)
    found.calls_twice = dict(twice)
    found.reconciled = query(log, "SELECT count(*) FROM calls WHERE kind = 'reconcile'")[0][0]


def _check_recorded(found: Verdicts, log: Path, ledger: Path) -> None:
    recorded = {
        (run, step): at / 1e6
        for run, step, at in query(
            ledger,
            "SELECT run_id, CASE kind WHEN 'model' THEN effects.digest ELSE name END, min(outcome_at) "
            "FROM effects JOIN runs ON runs.id = effects.run WHERE status = 'ok' GROUP BY 1, 2",
        )
    }
    late = [
        request
        for request in _requests(log)
        if request.received > recorded.get((request.run, request.step), float("inf"))
    ]
    found.paid_again = sum(request.kind == "model" for request in late)
    found.calls_again = len(late) - found.paid_again


def _requests(log: Path) -> list[_Request]:
    rows = query(log, "SELECT kind, name, run, step, received FROM calls WHERE kind <> 'reconcile'")
    return [_Request(*row) for row in rows]


def query(file: Path, sql: str, *values: Any) -> list[Any]:
    """Reads a SQLite file that others write."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as database:
        return database.execute(sql, values).fetchall()


def _rows(file: Path) -> list[Any]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
