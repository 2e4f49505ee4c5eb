"""Sleeps, deadlines, tools' timeouts and session expiry on a real cluster: in their bound, after a restore too."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.timers.agents import LIMIT, Event, Kind, trace_of
from benchmarks.timers.figures import read_times
from benchmarks.timers.job import LEDGER, Seen, read_seen
from benchmarks.timers.runs import ROOT, append
from runners.flink.cluster import FlinkCluster
from runners.flink.rest import TERMINAL

pytestmark = [pytest.mark.flink, pytest.mark.timeout(400)]

BUDGET = 10.0
"""Seconds of a deadline run, and of the longest sleep."""

TTL = 8.0
"""Seconds of event time, which here is the clock, that a session lives."""

BOUND = 15.0
"""Seconds that anything may be late on a busy machine, and that recovery may take once the job runs again."""

PATIENCE = 90.0
"""Seconds for what has no bound of its own: the start of a worker, a checkpoint, a savepoint."""


class TimersJob:
    """The pipeline of `benchmarks.timers` on a cluster.

    Args:
        cluster: It is up.
        folder: For the job's files.
    """

    def __init__(self, cluster: FlinkCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.id = ""
        self._events = folder / "events"
        self._events.mkdir()

    def submit(self, savepoint: str | None = None) -> None:
        program = [sys.executable, "-m", "benchmarks.timers.job", f"--events={self._events}", f"--out={self.folder}"]
        program += [f"--budget={BUDGET}", f"--ttl={TTL}"]
        self.id = self.cluster.submit(program, savepoint_path=savepoint, directory=ROOT)

    def give(self, events: Iterable[Event]) -> list[str]:
        """Gives events to the job, all in one piece; returns their ids."""
        given = list(events)
        append(self._events, given)
        return [event.id for event in given]

    def seen(self) -> dict[str, Seen]:
        """The first outcome of each event."""
        first: dict[str, Seen] = {}
        for seen in read_seen(self.folder):
            first.setdefault(seen.id, seen)
        return first

    def wait_seen(self, ids: Iterable[str], seconds: float) -> list[Seen]:
        """Waits until each event has an outcome."""
        wanted = set(ids)
        self.wait(lambda: wanted <= self.seen().keys(), seconds, f"outcome of each of {sorted(wanted)}")
        seen = self.seen()
        return [seen[each] for each in sorted(wanted)]

    def wait_open(self, ids: Iterable[str]) -> None:
        """Waits until each event has an open run."""
        wanted = set(ids)
        self.wait(
            lambda: (self.folder / LEDGER).exists() and wanted <= read_times(self.folder).keys(), PATIENCE, "open runs"
        )

    def wait_checkpoint(self) -> None:
        """Waits for a checkpoint that began after the call."""
        done = self.cluster.rest.checkpoints(self.id).completed
        self.wait(lambda: self.cluster.rest.checkpoints(self.id).completed >= done + 2, PATIENCE, "checkpoint")

    def wait(self, reached: Callable[[], bool], seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        while not reached():
            state = self.cluster.rest.job(self.id).state
            if state in TERMINAL:
                raise AssertionError(f"the job is {state}, no {what}")
            if time.monotonic() > until:
                raise AssertionError(f"no {what} within {seconds:g} s; seen: {sorted(self.seen())}")
            time.sleep(0.2)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(1, id="one-task-manager", marks=pytest.mark.long),
        pytest.param(2, id="two-task-managers"),
    ],
)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    """A cluster for jobs of parallelism N on N TaskManagers."""
    task_managers: int = request.param
    cluster = FlinkCluster(
        tmp_path_factory.mktemp("timers-cluster"),
        task_managers=task_managers,
        slots=1,  # so that a job is on all of them
        parallelism=task_managers,
        checkpoint_interval=timedelta(seconds=2),
        rest_port=0,
    )
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def job(cluster: FlinkCluster, tmp_path_factory: pytest.TempPathFactory) -> TimersJob:
    """A job that is at work."""
    job = TimersJob(cluster, tmp_path_factory.mktemp("timers"))
    try:
        job.submit()
        job.wait_seen(job.give([Event(id="first", key="first", kind="sleep", seconds=0)]), PATIENCE)
    except Exception as error:
        error.add_note(cluster.report())
        raise
    return job


@pytest.fixture(autouse=True)
def told(cluster: FlinkCluster, request: pytest.FixtureRequest) -> Iterator[None]:
    """Shows what the cluster says when a test has failed."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        print(cluster.report())


def some(name: str, kind: Kind, count: int, seconds: float = LIMIT) -> list[Event]:
    return [Event(id=f"{name}-{n}", key=f"{name}-key-{n}", kind=kind, seconds=seconds) for n in range(count)]


def visits(name: str, count: int = 1, *, key: str) -> list[Event]:
    """Events that end at once."""
    return [Event(id=f"{name}-{n}", key=key, kind="sleep", seconds=0) for n in range(count)]


def test_every_timer_fires_in_its_bound_while_calls_are_in_flight(job: TimersJob) -> None:
    busy = job.give(some("busy", "sleep", 30, seconds=BUDGET))
    sleeps, steps = job.give(some("sleep", "sleep", 10)), job.give(some("step", "step", 10))
    deadlines = job.give(some("deadline", "deadline", 10))
    visitor = job.give(visits("visit", 2, key="visitor"))

    assert [seen.waited and seen.waited.nth for seen in job.wait_seen(visitor, PATIENCE)] == [1, 2]
    session_over = time.monotonic() + TTL + 1
    for seen in job.wait_seen([*sleeps, *steps], PATIENCE):
        assert seen.waited is not None
        assert LIMIT <= seen.waited.seconds < LIMIT + BOUND
    ended = job.wait_seen(deadlines, PATIENCE)
    times = read_times(job.folder)
    assert {seen.outcome for seen in ended} == {"deadline"}
    for seen in job.wait_seen([*busy, *sleeps, *steps, *deadlines], PATIENCE):
        opened, closed = times[seen.id] if seen.id in deadlines else read_times(job.folder)[seen.id]
        assert closed is not None
        assert seen.at - closed < BOUND
        if seen.id in deadlines:
            assert BUDGET <= closed - opened < BUDGET + BOUND
    # Each worker emits what ended in it; the keys are spread over all of them.
    assert len({seen.pid for seen in job.seen().values()}) == job.cluster.settings.parallelism

    time.sleep(max(0.0, session_over - time.monotonic()))
    [late] = job.wait_seen(job.give(visits("late-visit", key="visitor")), PATIENCE)
    assert late.waited is not None
    assert late.waited.nth == 1


def test_what_was_due_while_the_job_was_down_fires_when_it_is_back(job: TimersJob) -> None:
    job.wait_seen(job.give(visits("kept", key="keeper")), PATIENCE)
    job.wait_checkpoint()
    sleeps = job.give(some("long", "sleep", 8, seconds=BUDGET))
    deadlines = job.give(some("late", "deadline", 8))
    job.wait_open([*sleeps, *deadlines])

    down_until = time.time() + BUDGET + 1
    if len(job.cluster.task_managers) == 1:
        job.cluster.task_managers[0].kill()
        _sleep_until(down_until)
        pending = _pending(job, sleeps, deadlines)
        job.cluster.start_task_manager()
        job.wait(lambda: job.cluster.rest.job(job.id).runs, PATIENCE, "running job")
    else:
        savepoint = job.cluster.rest.stop_with_savepoint(job.id, str(job.cluster.savepoints))
        _sleep_until(down_until)
        pending = _pending(job, sleeps, deadlines)
        job.submit(savepoint)
    back = time.time()
    assert pending & {*sleeps}
    assert pending & {*deadlines}

    job.wait_seen([*sleeps, *deadlines], PATIENCE)
    seen, times = job.seen(), read_times(job.folder)
    for each in sleeps:
        waited = seen[each].waited
        assert waited is not None
        assert waited.seconds >= BUDGET
    for each in deadlines:
        opened, closed = times[each]
        assert seen[each].outcome == "deadline"
        assert closed is not None
        assert closed - opened >= BUDGET
    late = {each: seen[each].at - back for each in pending}
    assert max(late.values()) < BOUND, late

    _check_expiry(job)


def _pending(job: TimersJob, *ids: list[str]) -> set[str]:
    """Those whose run was open while the job was down."""
    times = read_times(job.folder)
    return {each for some in ids for each in some if times[each].closed is None}


def _check_expiry(job: TimersJob) -> None:
    """Beam's state no longer has the session that expired while the job was down, but has a fresh one."""
    until = time.monotonic() + PATIENCE
    for attempt in range(100):
        job.wait_seen(fresh := job.give(visits(f"fresh-{attempt}", key="fresh")), PATIENCE)
        kept = _bytes_of(job.cluster.rest.savepoint(job.id, str(job.cluster.savepoints)))
        has_fresh, has_expired = (trace_of(event).encode() in kept for event in (fresh[0], "kept-0"))
        if has_fresh and not has_expired:
            break
        assert time.monotonic() < until, f"fresh session kept: {has_fresh}, expired session kept: {has_expired}"
    [again] = job.wait_seen(job.give(visits("again", key="keeper")), PATIENCE)
    assert again.waited is not None
    assert again.waited.nth == 1


def _bytes_of(savepoint: str) -> bytes:
    folder = Path(savepoint.removeprefix("file:"))
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))
