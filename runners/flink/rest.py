"""What Flink's JobManager tells and does over HTTP."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from runners.flink.errors import RestError

TERMINAL = frozenset({"FINISHED", "CANCELED", "FAILED"})
"""The states that a job never leaves."""

_FRAME = re.compile(r"\s+(at \S+\(.*\)|\.\.\. \d+ more)")
_POLL = 0.2


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class JobSummary(_Answer):
    """A job, as in the list of jobs."""

    id: str = Field(alias="jid")
    name: str
    state: str
    started: int = Field(alias="start-time")
    """When it was submitted, in milliseconds since 1970."""


class Task(_Answer):
    """A step of a job; Flink may have put several transforms into it."""

    id: str
    name: str
    parallelism: int
    state: str = Field(alias="status")


class Job(_Answer):
    """A job in detail."""

    id: str = Field(alias="jid")
    name: str
    state: str
    started: int = Field(alias="start-time")
    """When it was submitted, in milliseconds since 1970."""
    tasks: list[Task] = Field(alias="vertices")

    @property
    def runs(self) -> bool:
        """Whether all of its tasks are at work, or have done theirs."""
        return self.state == "RUNNING" and all(task.state in {"RUNNING", "FINISHED"} for task in self.tasks)


class Checkpoint(_Answer):
    """A completed checkpoint or savepoint."""

    id: int
    path: str = Field(alias="external_path")
    bytes: int = Field(alias="state_size")
    milliseconds: int = Field(alias="end_to_end_duration")
    is_savepoint: bool


class Checkpoints(_Answer):
    """A job's checkpoints since it was submitted."""

    completed: int
    failed: int
    """Also those that were declined since a task was not running yet."""
    restored: int
    """How often the job was restored."""
    latest: Checkpoint | None


class TaskManagerInfo(_Answer):
    """A TaskManager that is registered."""

    id: str
    slots: int = Field(alias="slotsNumber")
    free_slots: int = Field(alias="freeSlots")


class FlinkRest:
    """A JobManager's REST interface.

    Args:
        url: For example "http://127.0.0.1:8081".
        timeout: For one request, in seconds.

    All methods raise `RestError` when the JobManager does not answer or refuses.
    """

    def __init__(self, url: str, *, timeout: float = 30) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        # A proxy is for the world outside.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def jobs(self) -> list[JobSummary]:
        """All jobs that the JobManager remembers, ended ones too, the newest first."""
        jobs = [JobSummary.model_validate(job) for job in self.get("/jobs/overview")["jobs"]]
        return sorted(jobs, key=lambda job: job.started, reverse=True)

    def job(self, job: str) -> Job:
        """A job by its id."""
        return Job.model_validate(self.get(f"/jobs/{job}"))

    def exceptions(self, job: str) -> list[str]:
        """Why a job failed or was restarted, the newest first.

        These are Python's tracebacks in Java's stack traces, of which only the messages and causes are kept.
        """
        said = self.get(f"/jobs/{job}/exceptions")
        entries = said.get("exceptionHistory", {}).get("entries", [])
        traces = [f"{entry.get('taskName') or 'The job'}: {entry['stacktrace']}" for entry in entries]
        if not traces and said.get("root-exception"):
            traces = [said["root-exception"]]
        return ["\n".join(line for line in trace.splitlines() if not _FRAME.match(line)) for trace in traces]

    def checkpoints(self, job: str) -> Checkpoints:
        """How a job's checkpoints went."""
        said = self.get(f"/jobs/{job}/checkpoints")
        newest = (said.get("latest") or {}).get("completed")
        return Checkpoints(
            completed=said["counts"]["completed"],
            failed=said["counts"]["failed"],
            restored=said["counts"]["restored"],
            latest=Checkpoint.model_validate(newest) if newest else None,
        )

    def task_managers(self) -> list[TaskManagerInfo]:
        """The TaskManagers that are registered; one that died stays on the list until its heartbeats are missed."""
        return [TaskManagerInfo.model_validate(each) for each in self.get("/taskmanagers")["taskmanagers"]]

    def savepoint(self, job: str, folder: Path | str, *, timeout: float = 120) -> str:
        """Take a savepoint of a job that goes on.

        Args:
            job: Its id.
            folder: Where to put it, a path or URL that all machines of the cluster can write to.
            timeout: In seconds.

        Returns:
            Its location, good for the option `--savepoint_path`.
        """
        request = {"cancel-job": False, "target-directory": _url(folder)}
        return self._finished(job, self.post(f"/jobs/{job}/savepoints", request), timeout)

    def stop_with_savepoint(self, job: str, folder: Path | str, *, timeout: float = 120) -> str:
        """End a job with a savepoint from which it can be resumed, and wait until it has ended.

        Args:
            job: Its id.
            folder: Where to put it, a path or URL that all machines of the cluster can write to.
            timeout: In seconds, for each of the two.

        Returns:
            Its location, good for the option `--savepoint_path`.
        """
        request = {"targetDirectory": _url(folder), "drain": False}
        location = self._finished(job, self.post(f"/jobs/{job}/stop", request), timeout)
        self.wait_until_ended(job, timeout=timeout)
        return location

    def cancel(self, job: str, *, timeout: float = 60) -> None:
        """End a job at once and wait until it has ended. Its newest checkpoints are kept."""
        if self.job(job).state not in TERMINAL:
            self._call("PATCH", f"/jobs/{job}?mode=cancel")
        self.wait_until_ended(job, timeout=timeout)

    def wait_until_ended(self, job: str, *, timeout: float) -> str:
        """Wait until a job is FINISHED, CANCELED or FAILED, at most `timeout` seconds; which of them."""

        def state() -> str | None:
            now = self.job(job).state
            return now if now in TERMINAL else None

        return self._wait(state, timeout, f"job {job!r} did not end")

    def get(self, path: str) -> Any:
        """The JSON document at `path`."""
        return self._call("GET", path)

    def post(self, path: str, body: Mapping[str, object]) -> Any:
        """The answer to the JSON document `body`, sent to `path`."""
        return self._call("POST", path, json.dumps(body).encode())

    def _finished(self, job: str, triggered: Mapping[str, str], timeout: float) -> str:
        trigger = triggered["request-id"]

        def location() -> str | None:
            said = self.get(f"/jobs/{job}/savepoints/{trigger}")
            if said["status"]["id"] != "COMPLETED":
                return None
            operation = said["operation"]
            if "failure-cause" in operation:
                trace = operation["failure-cause"].get("stack-trace", operation["failure-cause"])
                raise RestError(f"the savepoint of job {job!r} failed: {trace}")
            return str(operation["location"])

        return self._wait(location, timeout, f"the savepoint of job {job!r} was not completed")

    def _wait(self, look: Callable[[], str | None], timeout: float, otherwise: str) -> str:
        until = time.monotonic() + timeout
        while (found := look()) is None:
            if time.monotonic() > until:
                raise RestError(f"{otherwise} within {timeout:g} s")
            time.sleep(_POLL)
        return found

    def _call(self, method: str, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}", data=body, method=method, headers={"Content-Type": "application/json"}
        )
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                said = response.read()
        except urllib.error.HTTPError as error:
            with error:
                reason = error.read().decode(errors="replace")
            raise RestError(f"{method} {request.full_url!r} was refused with {error.code}: {reason}") from None
        except (OSError, HTTPException) as error:
            raise RestError(f"the JobManager at {self.url!r} does not answer: {error}") from error
        return json.loads(said) if said else None


def _url(folder: Path | str) -> str:
    return folder.resolve().as_uri() if isinstance(folder, Path) else folder
