"""The commands `beam-agents flink ...`: a real Flink cluster on this machine, and the jobs on it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runners.flink.cluster import FlinkCluster
from runners.flink.errors import FlinkError
from runners.flink.rest import TERMINAL, FlinkRest, JobSummary, TaskManagerInfo
from runners.flink.status import ClusterStatus, JobStatus, PartStatus, job_status, lines
from runners.flink.submission import program_name

FOLDER = Path(".flink")
"""Where a cluster lives unless another folder is named."""


class UserError(FlinkError):
    """A command that cannot be carried out as it was given."""


def parser() -> argparse.ArgumentParser:
    """What the commands understand. Each sets `action`."""
    made = argparse.ArgumentParser(prog="beam-agents flink", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="start a cluster, or what of it does not run")
    up.add_argument("--port", type=int, dest="rest_port", help="of the web page (8081); 0 takes a free one")
    up.add_argument("--task-managers", type=_positive, metavar="N", help="JVMs that work (1)")
    up.add_argument("--slots", type=_positive, metavar="N", help="of each TaskManager (2)")
    up.add_argument("--parallelism", type=_positive, metavar="N", help="of jobs that name none (1)")
    up.set_defaults(action=_up)

    submit = commands.add_parser(
        "submit",
        help="run a pipeline on it, from now on or from where it was",
        usage="beam-agents flink submit [options] -- PROGRAM.py [ARGUMENTS]  (or -- -m MODULE [ARGUMENTS])",
        description="Runs the program with this Python and Beam's options for the cluster; returns when the job runs.",
    )
    start = submit.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        action="store_true",
        help="from the newest checkpoint or savepoint of the job that was submitted last",
    )
    start.add_argument("--from", dest="savepoint", metavar="PATH", help="from this savepoint or checkpoint")
    submit.add_argument("--parallelism", type=_positive, metavar="N", help="(the cluster's)")
    submit.add_argument("--attach", action="store_true", help="stay until the job has ended; exit code 1 if it failed")
    submit.set_defaults(action=_submit)

    status = commands.add_parser("status", help="the cluster's processes and jobs; exit code 1 if something is dead")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(action=_status)

    savepoint = commands.add_parser("savepoint", help="take a savepoint; prints its path")
    savepoint.add_argument("--stop", action="store_true", help="and end the job with it")
    savepoint.set_defaults(action=_savepoint)

    cancel = commands.add_parser("cancel", help="end a job; its newest checkpoint is kept")
    cancel.set_defaults(action=_cancel)
    for command in (savepoint, cancel):
        command.add_argument("job", nargs="?", metavar="JOB", help="its id or the beginning of it, if several run")

    down = commands.add_parser("down", help="end the cluster; checkpoints, savepoints and logs stay")
    down.set_defaults(action=_down)
    for command in commands.choices.values():
        command.add_argument("--folder", type=Path, default=FOLDER, help="the cluster's (%(default)s)")
    return made


def main(arguments: Sequence[str]) -> int:
    """Carries out a command.

    Args:
        arguments: Without the program's name. What follows `--` is the pipeline program of `submit`.

    Returns:
        The exit code: 0; 1 for a dead process in `status` and a failed job in `submit --attach`; 2 for what the user
        has to change.
    """
    ours, program = list(arguments), []
    if "--" in ours:
        at = ours.index("--")
        ours, program = ours[:at], ours[at + 1 :]
    chosen = parser().parse_args(ours)
    chosen.program = program
    try:
        return int(chosen.action(chosen))
    except FlinkError as error:
        print(f"beam-agents flink {chosen.command}: {error}", file=sys.stderr)
        return 2


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _up(chosen: argparse.Namespace) -> int:
    names = ("rest_port", "task_managers", "slots", "parallelism")
    given = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    # One that was not taken down keeps its settings, so that a bare `up` starts what has died of it.
    earlier = dict(FlinkCluster.load(chosen.folder).settings) if (chosen.folder / "cluster.json").is_file() else {}
    cluster = FlinkCluster(chosen.folder, **{**earlier, **given})
    cluster.up()
    print(f"web page    {cluster.rest_url}")
    print(f"job server  {cluster.job_endpoint}")
    print(f"logs        {chosen.folder / 'logs'}")
    return 0


def _submit(chosen: argparse.Namespace) -> int:
    command = _command(chosen.program)
    cluster = _loaded(chosen.folder)
    start = _newest(cluster, program_name(command)) if chosen.resume else chosen.savepoint
    if chosen.resume:
        print(f"resumes from {start}", flush=True)
    job = cluster.submit(command, parallelism=chosen.parallelism, savepoint_path=start)
    _show_warnings(cluster, job)
    print(f"job {job} runs: {cluster.rest_url}/#/job/{job}/overview")
    if not chosen.attach:
        return 0
    try:
        state = cluster.rest.wait_until_ended(job, timeout=float("inf"))
    except KeyboardInterrupt:
        print(f"job {job} goes on; beam-agents flink savepoint --stop ends it")
        return 0
    print(f"job {job} is {state}")
    return 0 if state == "FINISHED" else 1


def _show_warnings(cluster: FlinkCluster, job: str) -> None:
    """Shows what the program warned of; the rest of what it said stays in its log."""
    for submitted in cluster.submissions():
        if submitted.job == job:
            said = (cluster.logs / f"submit-{submitted.name}.log").read_text(errors="replace")
            print(
                *(f"{line}\n" for line in said.splitlines() if "FlinkWarning: " in line),
                sep="",
                end="",
                file=sys.stderr,
            )


def _newest(cluster: FlinkCluster, program: str) -> Path:
    """The newest checkpoint or savepoint of the last job of a program."""
    submitted = cluster.submissions()
    last = next((each for each in submitted if each.program == program), None)
    if last is None:
        names = ", ".join(sorted({repr(each.program) for each in submitted})) or "none"
        raise UserError(
            f"--resume: no job of {program!r} was submitted in {str(cluster.folder)!r}, only of: {names}; name a "
            "savepoint or checkpoint with --from, or submit without --resume"
        )
    if any(job.id == last.job and job.state not in TERMINAL for job in cluster.rest.jobs()):
        raise UserError(
            f"--resume: the last job of {program!r}, {last.job}, runs; end it first: beam-agents flink savepoint --stop"
        )
    found = [path.parent for path in cluster.savepoints.glob(f"savepoint-{last.job[:6]}-*/_metadata")]
    checkpoint = cluster.newest_checkpoint(last.job)
    if checkpoint is not None:
        found.append(checkpoint)
    if not found:
        raise UserError(
            f"--resume: the last job of {program!r}, {last.job}, left no checkpoint; submit without --resume to start "
            "from the beginning (the ledger has what was done), or name a checkpoint with --from"
        )
    return max(found, key=lambda path: (path / "_metadata").stat().st_mtime_ns)


def _loaded(folder: Path) -> FlinkCluster:
    """The cluster, which is up."""
    cluster = FlinkCluster.load(folder)
    if not cluster.job_manager.alive():
        raise UserError(f"the JobManager of the cluster in {str(folder)!r} has died; start it: beam-agents flink up")
    return cluster


def _command(program: Sequence[str]) -> list[str]:
    if not program:
        raise UserError("name the pipeline's program after '--', for example: -- my_pipeline.py --input=events")
    if program[0] == "-m":
        if len(program) < 2:
            raise UserError("name a module after '-m'")
        try:
            found = importlib.util.find_spec(program[1])
        except ModuleNotFoundError:
            found = None
        here = Path(*program[1].split("."))  # python -m looks here first, this program does not
        if found is None and not here.is_dir() and not here.with_suffix(".py").is_file():
            raise UserError(f"there is no module {program[1]!r} that this Python ({sys.executable}) can import")
    elif not Path(program[0]).is_file():
        raise UserError(f"there is no file {program[0]!r}; a module is given as '-- -m {program[0]}'")
    return [sys.executable, *program]


def _status(chosen: argparse.Namespace) -> int:
    cluster = FlinkCluster.load(chosen.folder)
    parts = [
        PartStatus(part.name, part.pid, part.alive())
        for part in (cluster.job_manager, cluster.job_server, *cluster.task_managers)
    ]
    slots: list[TaskManagerInfo] = []
    jobs: list[JobStatus] = []
    if cluster.job_manager.alive():
        slots = cluster.rest.task_managers()
        listed = cluster.rest.get("/jobs/overview")["jobs"]
        jobs = [_job(cluster.rest, job) for job in sorted(listed, key=lambda job: -job["start-time"])]
    status = ClusterStatus(
        folder=str(chosen.folder),
        web=cluster.rest_url,
        parts=parts,
        slots=sum(each.slots for each in slots),
        slots_free=sum(each.free_slots for each in slots),
        jobs=jobs,
    )
    if chosen.json:
        print(json.dumps(asdict(status), indent=2))
    else:
        print(*lines(status), sep="\n")
    return 0 if all(part.alive for part in parts) else 1


def _job(rest: FlinkRest, job: Mapping[str, Any]) -> JobStatus:
    path = f"/jobs/{job['jid']}"
    counted = rest.get(f"{path}/metrics?get=numRestarts")
    return job_status(
        job,
        restarts=int(counted[0]["value"]) if counted else 0,
        checkpoints=rest.get(f"{path}/checkpoints"),
        exceptions=rest.get(f"{path}/exceptions"),
    )


def _savepoint(chosen: argparse.Namespace) -> int:
    cluster = _loaded(chosen.folder)
    job = _running(cluster.rest, chosen.job)
    take = cluster.rest.stop_with_savepoint if chosen.stop else cluster.rest.savepoint
    print(take(job.id, str(cluster.savepoints)))
    return 0


def _cancel(chosen: argparse.Namespace) -> int:
    cluster = _loaded(chosen.folder)
    job = _running(cluster.rest, chosen.job)
    cluster.rest.cancel(job.id)
    print(f"job {job.id} is cancelled; beam-agents flink submit --resume goes on from its newest checkpoint")
    return 0


def _down(chosen: argparse.Namespace) -> int:
    if chosen.folder.is_dir():
        FlinkCluster(chosen.folder).down()
    return 0


def _running(rest: FlinkRest, wanted: str | None) -> JobSummary:
    """The job that runs, or that of those which run whose id begins with `wanted`."""
    running = [job for job in rest.jobs() if job.state not in TERMINAL]
    chosen = [job for job in running if job.id.startswith(wanted or "")]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(f"{job.id} ({job.name!r}, {job.state})" for job in running)
    if not running:
        raise UserError("no job runs")
    if not chosen:
        raise UserError(f"no running job's id begins with {wanted!r}; there run: {names}")
    raise UserError(f"several jobs run, name one by the beginning of its id: {names}")
