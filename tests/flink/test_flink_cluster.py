"""The cluster itself: its processes die and come back, and a job goes on from where it was."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runners.flink.cluster import FlinkCluster
from runners.flink.errors import ClusterError, SubmitFailed
from runners.flink.processes import find_processes
from tests.flink.counting_job import Line, read

pytestmark = [pytest.mark.flink, pytest.mark.timeout(400)]

_ROOT = Path(__file__).resolve().parents[2]


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


class Counting:
    """The counting job on a cluster."""

    def __init__(self, flink: FlinkCluster, out: Path) -> None:
        self.flink = flink
        self.out = out
        self.id = ""

    def submit(self, *, parallelism: int = 1, savepoint_path: Path | str | None = None) -> None:
        self.id = self.flink.submit(
            [sys.executable, "-m", "tests.flink.counting_job", f"--out={self.out}"],
            parallelism=parallelism,
            savepoint_path=savepoint_path,
            directory=_ROOT,
        )

    def lines(self) -> list[Line]:
        return read(self.out)

    def wait_for_new_worker(self, old: set[int]) -> list[Line]:
        """Until both keys have counted in a worker that is not one of `old`; what they then counted."""

        def new() -> list[Line]:
            return [line for line in self.lines() if line.pid not in old]

        wait_until(lambda: {line.key for line in new()} == {"key-0", "key-1"}, "both keys count again")
        return new()

    def pids(self) -> set[int]:
        return {line.pid for line in self.lines()}

    def wait_for_checkpoint(self) -> None:
        """Until one is complete that was started from now on."""
        completed = self.flink.rest.checkpoints(self.id).completed
        wait_until(lambda: self.flink.rest.checkpoints(self.id).completed > completed + 1, "checkpoint")


def assert_goes_on(before: list[Line], after: list[Line]) -> None:
    """Each key's count goes on from a checkpoint, not from the start and not from where none was."""
    for key in ("key-0", "key-1"):
        reached = max(line.count for line in before if line.key == key)
        first = next(line.count for line in after if line.key == key)
        assert 1 < first <= reached + 1


@pytest.mark.long  # the short form is in test_flink_recovery.py
def test_a_job_goes_on_whatever_dies(flink: FlinkCluster, tmp_path: Path) -> None:
    job = Counting(flink, tmp_path / "counts")
    job.submit()
    job.wait_for_new_worker(set())
    assert job.pids() <= set(flink.workers())
    logs = [path.read_text() for path in flink.logs.glob("worker-*.log")]
    assert any("key key-0 starts in" in log for log in logs), "what a DoFn prints is in its worker's log"
    job.wait_for_checkpoint()

    # A worker.
    before = job.lines()
    for pid in flink.workers():
        os.kill(pid, signal.SIGKILL)
    assert_goes_on(before, job.wait_for_new_worker({line.pid for line in before}))

    # The TaskManager that has the job; `up` replaces it.
    job.wait_for_checkpoint()
    before = job.lines()
    busy = next(each for each in flink.rest.task_managers() if each.free_slots < each.slots)
    killed = next(process for process in flink.task_managers if busy.id.startswith(f"{process.name}-"))
    killed.kill()
    assert not killed.alive()
    flink.up()
    assert killed not in flink.task_managers
    assert all(process.alive() for process in flink.processes())
    assert_goes_on(before, job.wait_for_new_worker({line.pid for line in before}))

    # The JobManager, which forgets the job; it is submitted again from its newest checkpoint.
    wait_until(lambda: flink.rest.job(job.id).runs, "the job runs")
    job.wait_for_checkpoint()
    address, old = flink.rest_url, job.id
    flink.job_manager.kill()
    assert flink.start_job_manager().alive()
    assert flink.rest_url == address
    assert flink.rest.jobs() == []
    wait_until(lambda: not flink.workers(), "the old workers end")
    before = job.lines()
    checkpoint = flink.newest_checkpoint(old)
    assert checkpoint is not None
    job.submit(savepoint_path=checkpoint)
    assert job.id != old
    assert_goes_on(before, job.wait_for_new_worker({line.pid for line in before}))

    # A savepoint, and another parallelism.
    savepoint = flink.rest.stop_with_savepoint(job.id, flink.savepoints)
    assert flink.rest.job(job.id).state == "FINISHED"
    wait_until(lambda: not flink.workers(), "the workers of a job that was stopped end")
    before = job.lines()
    job.submit(parallelism=2, savepoint_path=savepoint)
    after = job.wait_for_new_worker({line.pid for line in before})
    assert {line.key: line.count for line in reversed(after)} == {line.key: line.count + 1 for line in before}, (
        "a savepoint is the very end"
    )

    # What is cancelled leaves its checkpoints.
    job.wait_for_checkpoint()
    flink.rest.cancel(job.id)
    assert flink.rest.job(job.id).state == "CANCELED"
    kept = flink.newest_checkpoint(job.id)
    assert kept is not None
    assert kept.parent.name == job.id
    assert [submission.restored for submission in flink.submissions()] == [savepoint, checkpoint.as_uri(), None]


def test_up_again_changes_nothing(flink: FlinkCluster) -> None:
    before = flink.processes()
    assert all(process.alive() for process in before)
    FlinkCluster.load(flink.folder).up()
    assert flink.processes() == before
    with pytest.raises(ClusterError, match="task_managers is 2 and not 1; take it down first"):
        FlinkCluster(flink.folder, task_managers=1, slots=2, rest_port=0).up()


def test_a_program_that_fails_is_told_with_what_it_said(flink: FlinkCluster, tmp_path: Path) -> None:
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit('no such input')")
    with pytest.raises(SubmitFailed, match=r"(?s)exit code 1 and no job.*no such input"):
        flink.submit([sys.executable, str(program)])


def test_a_job_that_does_not_get_to_work_is_cancelled(flink: FlinkCluster, tmp_path: Path) -> None:
    program = tmp_path / "slow.py"
    program.write_text("import time\nprint('still thinking', flush=True)\ntime.sleep(600)")
    with pytest.raises(SubmitFailed, match=r"(?s)within 3 s, and the program has not ended.*still thinking"):
        flink.submit([sys.executable, str(program)], timeout=3)
    assert not find_processes(str(program))


def test_down_leaves_no_process_and_a_checkpoint_to_go_on_from(flink: FlinkCluster, tmp_path: Path) -> None:
    job = Counting(flink, tmp_path / "counts")
    job.submit()
    job.wait_for_new_worker(set())
    job.wait_for_checkpoint()
    processes, workers = flink.processes(), flink.workers()
    assert workers
    flink.down()
    assert not any(process.alive() for process in processes)
    assert flink.workers() == []
    assert not list(flink.folder.glob("jobs")), "the variables of workers may be secrets"
    assert flink.newest_checkpoint(job.id) is not None
    with pytest.raises(ClusterError, match="is not up"):
        flink.submit([sys.executable, "-c", ""])
    flink.down()
