"""Kills parts of a Flink cluster while agents are at work on it, again and again, and counts what went wrong.

    python -m tests.flink.kill_cluster --kind worker --kills 20 --minutes 10 --out kills
    python -m tests.flink.kill_cluster --kind worker task-manager --ledger none --out kills-no-ledger

One job for each kind: a stream of events over many keys, a run of about two seconds for each (`load_job`), the world
outside in a process that nobody kills (`load_server`). The kills are spread over the time, at random moments with runs
in flight; each waits until the work of those that were killed goes on. In the end every event fed must have an outcome.

What is counted, and how (`load_check`):

- lost, results twice: by Beam's own state downstream of the agent, which a restore takes back together with the
  agent's, as it would a transactional sink. A plain sink sees again what was emitted since the checkpoint; it must
  never see two different outcomes for one event.
- `once` calls made twice: by the outside world's log of what took effect, for each run and tool.
- answers paid twice outside the in-flight window: model requests that came to the outside world after the time at
  which the ledger's journal has their outcome. Without a ledger, all requests beyond the first.
- seconds to the next step: from the kill to the first request of a process that is new, or for a run that a killed one
  had; what survivors do with their own runs does not count. Seconds to the next result: the same for outcomes emitted.

Kinds: `worker`: a Python worker is killed; `task-manager`: a TaskManager, another one is started at once;
`job-manager`: it is started again, and the job submitted from its newest retained checkpoint; `everything`: all of
these at once; `savepoint`: the job is stopped with a savepoint and goes on from it; `rescale`: the same, at another
parallelism. All kills are SIGKILLs.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel

from runners.flink.cluster import FlinkCluster
from tests.flink.load_check import Verdicts
from tests.flink.load_run import LoadRun, loading
from tests.flink.load_target import KINDS, Target, target_on

START_SECONDS = 240.0
"""Deadline for the first outcome of a job."""

RECOVERY_SECONDS = 240.0
"""Deadline for the first call and the first outcome after a kill."""

_OUTCOMES_BEFORE = 20
"""New outcomes before a kill: all workers are at work again then, and what follows is due to this kill."""

DRAIN_SECONDS = 420.0
"""Deadline for the last outcome: the time that a run may take, and what waits behind it in its key."""


class Kill(BaseModel):
    """One kill and how work went on."""

    kind: str
    at: float
    """Seconds since 1970."""
    open_runs: int
    calls_in_flight: int
    driven: int
    """Open runs of the processes that died."""
    to_step: float
    """Seconds to the first call that shows that their work goes on."""
    to_outcome: float
    """Seconds to the first outcome that shows it."""


class Trial(BaseModel):
    """One job and its kills."""

    kind: str
    ledger: bool
    seconds: float
    kills: list[Kill]
    verdicts: Verdicts


@contextmanager
def cluster_in(folder: Path, *, task_managers: int = 2, parallelism: int = 2) -> Iterator[FlinkCluster]:
    """A cluster for the length of the block."""
    cluster = FlinkCluster(
        folder,
        task_managers=task_managers,
        slots=1,  # so that the job is on all of them
        parallelism=parallelism,
        checkpoint_interval=timedelta(seconds=2),
        rest_port=0,
    )
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def start(run: LoadRun, target: Target) -> None:
    """Starts the job and the stream, and waits for the first outcome.

    Raises:
        TimeoutError: It did not come.
    """
    target.submit()
    run.feeder.start()
    run.wait(lambda: run.emitted() > 0, "first outcome", seconds=START_SECONDS, watch=target.watch)


def kill_once(run: LoadRun, target: Target, kind: str) -> Kill:
    """Waits until the job is well at work with calls in flight, kills, and waits until work goes on.

    Raises:
        TimeoutError: It did not.
    """
    run.wait(target.at_work, "job with all its tasks running", seconds=START_SECONDS, watch=target.watch)
    enough = run.emitted() + _OUTCOMES_BEFORE
    run.wait(lambda: run.emitted() >= enough, "outcomes before a kill", seconds=START_SECONDS, watch=target.watch)
    moment = KINDS[kind](target, run.moment)

    def measured(what: str, after: Callable[[], float | None]) -> float:
        run.wait(lambda: after() is not None, f"{what} after a kill", seconds=RECOVERY_SECONDS, watch=target.watch)
        return after() or 0.0

    return Kill(
        kind=kind,
        at=moment.at,
        open_runs=moment.open_runs,
        calls_in_flight=moment.calls,
        driven=len(moment.driven),
        to_step=measured("step", lambda: run.next_step(moment)),
        to_outcome=measured("outcome", lambda: run.next_outcome(moment)),
    )


def carry_out(kind: str, options: argparse.Namespace) -> Trial:
    """One job of one kind, from its start to its last outcome."""
    folder = options.out.absolute() / kind
    ledger = options.ledger != "none"
    moments = random.Random(options.seed)
    pause = options.minutes * 60 / options.kills
    kills: list[Kill] = []
    with (
        cluster_in(folder / "cluster") as cluster,
        loading(folder / "load", rate=options.rate, keys=options.keys, seed=options.seed, ledger=ledger) as run,
        target_on(cluster, run.job, parallelism=1 if kind == "rescale" else 2, seed=options.seed) as target,
    ):
        start(run, target)
        started = time.monotonic()
        for nth in range(options.kills):
            due = started + (nth + moments.random()) * pause
            while time.monotonic() < due:
                target.watch()
                time.sleep(0.2)
            kills.append(kill_once(run, target, kind))
            print(f"  {nth + 1:>3} {kills[-1]!r}", flush=True)
        seconds = time.monotonic() - started
        verdicts = run.finish(seconds=DRAIN_SECONDS, watch=target.watch)
        if verdicts.wrong():
            print(target.report(), file=sys.stderr)
    return Trial(kind=kind, ledger=ledger, seconds=seconds, kills=kills, verdicts=verdicts)


_HEADER = (
    f"{'kind':<13} {'ledger':<6} {'kills':>5} {'min':>5} {'events':>7} {'calls in':>8} {'lost':>5} {'twice':>5} "
    f"{'other':>5} {'once x2':>7} {'idem x2':>7} {'paid x2':>7} {'doubt':>5} {'failed':>6} {'state':>5} "
    f"{'step p50':>8} {'max':>6} {'result p50':>10} {'max':>6}"
)


def row(trial: Trial) -> str:
    """A trial as a line of the table."""
    found, kills = trial.verdicts, trial.kills
    steps, outcomes = [kill.to_step for kill in kills], [kill.to_outcome for kill in kills]
    paid = found.answers_paid_twice if found.paid_again is None else found.paid_again
    return (
        f"{trial.kind:<13} {'yes' if trial.ledger else 'none':<6} {len(kills):>5} {trial.seconds / 60:>5.1f} "
        f"{found.events:>7} {sum(kill.calls_in_flight for kill in kills):>8} {found.lost:>5} {found.twice:>5} "
        f"{found.contradictory:>5} {found.once_twice:>7} {found.idempotent_twice:>7} {paid:>7} {found.in_doubt:>5} "
        f"{sum(found.failures.values()):>6} {found.state_wrong:>5} {statistics.median(steps):>8.1f} {max(steps):>6.1f} "
        f"{statistics.median(outcomes):>10.1f} {max(outcomes):>6.1f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if no promise was broken. Without a ledger broken ones are expected, and it is 0 as well."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kind", choices=KINDS, nargs="+", required=True, help="one job for each")
    made.add_argument("--kills", metavar="N", type=int, default=20, help="of a job (%(default)s)")
    made.add_argument("--minutes", metavar="M", type=float, default=10, help="over which they are spread (%(default)s)")
    made.add_argument("--ledger", choices=("sqlite", "none"), default="sqlite", help="(%(default)s)")
    made.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="for logs and figures; must be new")
    made.add_argument("--rate", metavar="N", type=float, default=12, help="events a second (%(default)s)")
    made.add_argument("--keys", metavar="N", type=int, default=200, help="(%(default)s)")
    made.add_argument("--seed", metavar="N", type=int, default=1, help="of the moments and the victims (%(default)s)")
    options = made.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the cluster is taken down on the way out
    options.out.mkdir(parents=True)
    trials = []
    for kind in options.kind:
        trials.append(carry_out(kind, options))
        (options.out / f"{kind}.json").write_text(trials[-1].model_dump_json(indent=2))
        print(f"{kind}: {trials[-1].verdicts!r}", flush=True)
    print(_HEADER, *map(row, trials), sep="\n", flush=True)
    return int(any(trial.ledger and trial.verdicts.wrong() for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
