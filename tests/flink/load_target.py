"""The cluster that a load runs on, and the ways to hurt it."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from runners.flink.cluster import FlinkCluster
from runners.flink.rest import TERMINAL
from tests.flink.load_run import Moment
from tests.flink.load_server import ROOT

_AIM_SECONDS = 120.0
_LOOK_SECONDS = 0.1

Look: TypeAlias = Callable[[Collection[int], Collection[int]], Moment]
"""Takes a look at the load: those of the worker processes that are to be killed now, and all of them."""


class Target:
    """A job on a cluster.

    Args:
        cluster: It is up.
        job: The arguments of `load_job`, without Beam's options.
        parallelism: Of the job at its start.
        seed: Of the choice whom to kill.
    """

    def __init__(self, cluster: FlinkCluster, job: Sequence[str], *, parallelism: int, seed: int) -> None:
        self._cluster = cluster
        self._command = [sys.executable, "-m", "tests.flink.load_job", *job]
        self._parallelism = parallelism
        self._random = random.Random(seed)
        self._job = ""

    def submit(self, resume: Path | str | None = None) -> None:
        """Starts the job, from a savepoint or a retained checkpoint if one is given."""
        self._job = self._cluster.submit(
            self._command, parallelism=self._parallelism, savepoint_path=resume, directory=ROOT
        )

    def watch(self) -> None:
        """Looks whether the job can still go on.

        Raises:
            RuntimeError: It has ended.
        """
        state = self._cluster.rest.job(self._job).state
        if state in TERMINAL:
            raise RuntimeError(f"job {self._job} is {state}")

    def at_work(self) -> bool:
        """Whether all tasks of the job run."""
        return self._cluster.rest.job(self._job).runs

    def report(self) -> str:
        """What the cluster says of itself and its jobs."""
        return self._cluster.report()

    # ---- kills; each returns the load as it was at its moment ----

    def kill_worker(self, look: Look) -> Moment:
        """SIGKILL of a Python worker."""
        moment = self._aim(look, lambda workers: [self._random.choice(workers)])
        for victim in moment.victims:
            os.kill(victim, signal.SIGKILL)
        return moment

    def kill_task_manager(self, look: Look) -> Moment:
        """SIGKILL of a TaskManager; its workers end by themselves. Another one is started."""
        managers = [manager for manager in self._cluster.task_managers if manager.alive()]
        self._random.shuffle(managers)
        chosen = itertools.cycle(managers)

        def workers_of_next(workers: Sequence[int]) -> Sequence[int]:
            return _descendants(next(chosen).pid, workers)

        moment = self._aim(look, workers_of_next)
        victim = next(manager for manager in managers if _descendants(manager.pid, moment.victims))
        victim.kill()
        self._cluster.start_task_manager()
        return moment

    def kill_job_manager(self, look: Look) -> Moment:
        """SIGKILL of the JobManager; it is started again, and the job from its newest retained checkpoint."""
        moment = self._aim(look, lambda workers: workers)
        self._cluster.job_manager.kill()
        self._cluster.start_job_manager()
        self._resubmit()
        return moment

    def kill_everything(self, look: Look) -> Moment:
        """SIGKILL of all at once."""
        moment = self._aim(look, lambda workers: workers)
        for process in self._cluster.processes():
            process.kill()
        for worker in moment.victims:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        self._cluster.up()
        self._resubmit()
        return moment

    def stop_and_resume(self, look: Look) -> Moment:
        """Stops the job with a savepoint and starts it from there."""
        moment = self._aim(look, lambda workers: workers)
        self.submit(self._cluster.rest.stop_with_savepoint(self._job, str(self._cluster.savepoints)))
        return moment

    def rescale(self, look: Look) -> Moment:
        """The same, at parallelism 2 after 1 and at 1 after 2."""
        self._parallelism = 3 - self._parallelism
        return self.stop_and_resume(look)

    def _aim(self, look: Look, choose: Callable[[Sequence[int]], Sequence[int]]) -> Moment:
        """Chooses victims again and again until some are found in the middle of runs."""
        until = time.monotonic() + _AIM_SECONDS
        while True:
            workers = self._cluster.workers()
            victims = choose(workers) if workers else []
            moment = look(victims, workers)
            if moment.driven and moment.calls:
                return moment
            if time.monotonic() > until:
                raise TimeoutError(f"no worker of {workers!r} had runs and calls in flight within {_AIM_SECONDS:.0f} s")
            time.sleep(_LOOK_SECONDS)

    def _resubmit(self) -> None:
        checkpoint = self._cluster.newest_checkpoint(self._job)
        if checkpoint is None:
            raise RuntimeError("there is no retained checkpoint to start again from")
        self.submit(checkpoint)


KINDS: dict[str, Callable[[Target, Look], Moment]] = {
    "worker": Target.kill_worker,
    "task-manager": Target.kill_task_manager,
    "job-manager": Target.kill_job_manager,
    "everything": Target.kill_everything,
    "savepoint": Target.stop_and_resume,
    "rescale": Target.rescale,
}
"""The ways to hurt a job."""


@contextmanager
def target_on(cluster: FlinkCluster, job: Sequence[str], *, parallelism: int, seed: int) -> Iterator[Target]:
    """A target for the length of the block; what is raised in it gets the target's report as a note."""
    target = Target(cluster, job, parallelism=parallelism, seed=seed)
    try:
        yield target
    except Exception as error:
        error.add_note(target.report())
        raise


def _descendants(ancestor: int, pids: Collection[int]) -> list[int]:
    """Those of the processes that descend from one."""
    return [pid for pid in pids if ancestor in _ancestors(pid)]


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            break
        pid = int(status.rpartition(")")[2].split()[1])
        found.append(pid)
    return found
