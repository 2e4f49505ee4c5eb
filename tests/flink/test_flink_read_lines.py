"""`ReadLines` on a real cluster: after a kill and from a savepoint, windows on time, and a state that does not grow."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from apache_beam.utils.windowed_value import PaneInfoTiming

from runners.flink.cluster import FlinkCluster

pytestmark = pytest.mark.flink

SECONDS = 120.0
ACTIVE_SECONDS = 20.0


class Files:
    """Files that grow, and what the job has made of them."""

    def __init__(self, folder: Path) -> None:
        self.read, self.out = folder / "in", folder / "out"
        self.read.mkdir()
        self.out.mkdir()
        self.expected: dict[str, str] = {}

    def append(self, name: str, *texts: str) -> None:
        path = self.read / name
        offset = path.stat().st_size if path.exists() else 0
        with path.open("a") as file:
            for text in texts:
                self.expected[f"{name}:{offset}"] = text
                offset += file.write(f"{text}\n")

    def lines(self) -> list[tuple[str, str]]:
        """Ids and texts in the order of emission, doubled ones too."""
        path = self.out / "lines.txt"
        told = path.read_text().splitlines() if path.exists() else []
        return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in told]

    def windows(self) -> list[tuple[int, str]]:
        """Timings and ids, as windows of a second had them."""
        path = self.out / "windows.txt"
        told = path.read_text().splitlines() if path.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in told]

    def all_are_out(self) -> bool:
        return self.expected.keys() == {id for id, _ in self.lines()} == {id for _, id in self.windows()}


def wait(condition: Callable[[], bool], what: str, cluster: FlinkCluster) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not come within {SECONDS:g} s\n{cluster.report()}")
        time.sleep(0.2)


@pytest.mark.timeout(600)
def test_lines_are_read_once_whatever_is_killed_and_the_state_does_not_grow(tmp_path: Path) -> None:
    cluster = FlinkCluster(tmp_path / "cluster", checkpoint_interval=timedelta(seconds=1), rest_port=0)
    files = Files(tmp_path)
    for number in range(8):
        files.append(f"{number}.jsonl", *(f"{number} {line}" for line in range(100)))
    program = [sys.executable, "-m", "tests.flink.lines_job", f"--read={files.read}", f"--out={files.out}"]
    try:
        cluster.up()
        job = cluster.submit(program)
        wait(files.all_are_out, "what was there at the start", cluster)

        def kept_sources() -> set[bytes]:
            """The states in which Flink keeps what is left of a source: one more each time that it is interrupted."""
            seen = cluster.rest.checkpoints(job).completed
            wait(lambda: cluster.rest.checkpoints(job).completed > seen + 1, "a checkpoint", cluster)
            checkpoint = cluster.newest_checkpoint(job)
            assert checkpoint is not None
            stored = b"".join(file.read_bytes() for file in checkpoint.iterdir())
            return set(re.findall(rb"sdf_checkpoint:[!-~]+", stored))

        before = kept_sources()
        assert before
        until, number = time.monotonic() + ACTIVE_SECONDS, 0
        while time.monotonic() < until:
            files.append(f"{number % 8}.jsonl", f"more {number}")
            number += 1
            time.sleep(0.1)  # the pace of the writer
        wait(files.all_are_out, "what was appended", cluster)
        assert len(kept_sources()) == len(before)
        assert len(files.lines()) == len(files.expected)

        cluster.task_managers[0].kill()
        files.append("0.jsonl", "while nobody reads")
        cluster.start_task_manager()
        files.append("new.jsonl", "first", "second")
        wait(files.all_are_out, "what was appended after the kill", cluster)
        assert dict(files.lines()) == files.expected
        assert set(files.lines()) == set(files.expected.items())

        savepoint = cluster.rest.stop_with_savepoint(job, cluster.savepoints.as_uri())
        read = len(files.lines())
        files.append("0.jsonl", "while there is no job")
        cluster.submit(program, savepoint_path=savepoint)
        wait(files.all_are_out, "what was appended after the savepoint", cluster)
        assert [text for _, text in files.lines()[read:]] == ["while there is no job"]
        assert {timing for timing, _ in files.windows()} == {PaneInfoTiming.ON_TIME}
    finally:
        cluster.down()
