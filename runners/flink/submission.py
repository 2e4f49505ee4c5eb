"""Runs a pipeline program until its job is at work on the cluster."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from runners.flink.errors import SubmitFailed
from runners.flink.machines import WORKER_MARK
from runners.flink.rest import TERMINAL, FlinkRest, JobSummary

_WORKER = Path(__file__).resolve().with_name("worker.py")
_KEPT_WORKER_LOGS = 100
_POLL = 0.2
_TAIL = 4_000


class Submission(BaseModel):
    """A job that was submitted."""

    model_config = ConfigDict(frozen=True)

    job: str
    """Flink's id of it."""
    name: str
    """Flink's name of it: that of the program and a random part."""
    program: str
    """The job's name as the user gave it with --job_name, else that of the program."""
    restored: str | None
    """Location of the checkpoint or savepoint that it started from."""


def program_name(command: Sequence[str]) -> str:
    """What to call the job of a command: its --job_name, else the name of its program or module."""
    for index, argument in enumerate(command):
        option, _, value = argument.partition("=")
        if option == "--job_name":
            value = value or "".join(command[index + 1 : index + 2])
            if value:
                return value
    python = Path(command[0]).name.startswith("python")
    program = next((each for each in command[python:] if not each.startswith("-")), command[0])
    return Path(program).stem if program.endswith(".py") else program.rpartition(".")[2].rpartition("/")[2]


def write_worker_script(
    script: Path, *, cluster: Path, logs: Path, temporary: Path, directory: Path, environment: Mapping[str, str]
) -> None:
    """Write the command by which TaskManagers start a job's Python workers.

    They get the variables and the folder that the program was submitted with, and a log file each. Only the user may
    read the script: there may be secrets among the variables.
    """
    search = [str(directory), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    variables = {
        **{name: value for name, value in environment.items() if name.isidentifier() and name != "_"},
        "PYTHONPATH": os.pathsep.join(search),
        "TMPDIR": str(temporary),
        # What is printed shows up at once.
        "PYTHONUNBUFFERED": "1",
    }
    lines = [
        "#!/bin/sh",
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())),
        f"cd {shlex.quote(str(directory))} || exit 1",
        f"logs={shlex.quote(str(logs))}",
        # A job that fails again and again starts workers again and again.
        f'ls -t "$logs"/worker-* 2>/dev/null | tail -n +{_KEPT_WORKER_LOGS} | while read -r old; do rm -f "$old"; done',
        'exec >>"$logs/worker-$(date +%Y%m%d-%H%M%S)-$$.log" 2>&1 </dev/null',
        # By its path: the user may have a module of the same name.
        f'exec {shlex.join([sys.executable, "-P", str(_WORKER), WORKER_MARK + str(cluster)])} "$@"',
    ]
    script.parent.mkdir(parents=True, exist_ok=True)
    script.touch(mode=0o700)
    script.write_text("\n".join(lines) + "\n")


def run_until_job_runs(
    command: Sequence[str],
    *,
    name: str,
    rest: FlinkRest,
    output: Path,
    directory: Path,
    environment: Mapping[str, str],
    timeout: float,
) -> str:
    """Run a program until the job that it submits as `name` is at work, then end the program. The job goes on.

    Returns:
        Flink's id of the job. A job on bounded input may have finished already.

    Raises:
        SubmitFailed: The program failed before, the job failed, or it was not at work within `timeout` seconds; it is
            cancelled then.
    """
    until = time.monotonic() + timeout
    with output.open("wb") as log:
        try:
            program = subprocess.Popen(
                command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise SubmitFailed(f"{command[0]!r} cannot be started: {error}") from error
    with program:
        try:
            while True:
                code = program.poll()
                found = _find(rest, name)
                if found is not None and _has_started(rest, found):
                    return found.id
                if found is None and code:
                    raise SubmitFailed(f"the program ended with exit code {code} and no job:\n{_tail(output)}")
                if time.monotonic() > until:
                    raise SubmitFailed(_late(rest, found, code, output, timeout))
                time.sleep(_POLL)
        finally:
            _end(program)


def _find(rest: FlinkRest, name: str) -> JobSummary | None:
    return next((job for job in rest.jobs() if job.name == name), None)


def _has_started(rest: FlinkRest, found: JobSummary) -> bool:
    if found.state == "FINISHED":
        return True
    if found.state in TERMINAL:
        raise SubmitFailed(f"job {found.name!r} ended as {found.state}:\n{_reasons(rest, found.id)}")
    return found.state == "RUNNING" and rest.job(found.id).runs


def _late(rest: FlinkRest, found: JobSummary | None, code: int | None, output: Path, timeout: float) -> str:
    if found is None:
        program = "has not ended" if code is None else f"ended with exit code {code}"
        return (
            f"no job came within {timeout:g} s, and the program {program}; does it give its arguments to "
            f"PipelineOptions, and run the pipeline? It said:\n{_tail(output)}"
        )
    job = rest.job(found.id)
    tasks = "".join(f"\n  {task.state} {task.name}" for task in job.tasks)
    reasons = _reasons(rest, found.id)
    rest.cancel(found.id)
    problem = f"was not at work within {timeout:g} s and is cancelled"
    return f"job {found.name!r} {problem}; it was {job.state}:{tasks}\n{reasons}"


def _reasons(rest: FlinkRest, job: str) -> str:
    return "\n".join(trace[:_TAIL] for trace in rest.exceptions(job)[:3]) or "Flink knows no reason"


def _end(program: subprocess.Popen[bytes]) -> None:
    program.terminate()
    try:
        program.wait(timeout=5)
    except subprocess.TimeoutExpired:
        program.kill()


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-_TAIL:].strip() or "(nothing)"
