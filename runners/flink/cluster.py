"""A Flink cluster on one machine: JobManager, TaskManagers and Beam's job server, each a process of its own."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from pydantic import ValidationError

from runners.flink.config import ClusterSettings, Layout
from runners.flink.errors import ClusterError, RestError
from runners.flink.machines import ClusterState, Machines
from runners.flink.processes import ManagedProcess
from runners.flink.rest import FlinkRest
from runners.flink.submission import Submission, program_name, run_until_job_runs, write_worker_script

_MAX_PARALLELISM = 128
_LEFT_TO_PROGRAMS = {"--parallelism", "--max_parallelism", "--checkpointing_interval", "--operator_chaining"}


class FlinkCluster:
    """A Flink cluster on this machine.

    Its folder has `cluster.json` (ports and processes), `logs` with a file for each process, and the checkpoints and
    savepoints, which stay when it is taken down. Everything listens on loopback only.

    Args:
        folder: The cluster's folder; it is made by `up`.
        task_managers: How many JVMs work.
        slots: Slots of each TaskManager.
        parallelism: Of jobs that do not ask for another.
        checkpoint_interval: Of jobs that do not ask for another.
        rest_port: Of the web UI and the REST interface; 0 takes a free one.
        job_manager_memory_mb: Of the JobManager's process.
        task_manager_memory_mb: Of each TaskManager's process, without its Python workers.

    Raises:
        ClusterError: An argument is out of range, or `parallelism` needs more slots than there are.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        task_managers: int = 1,
        slots: int = 2,
        parallelism: int = 1,
        checkpoint_interval: timedelta = timedelta(seconds=2),
        rest_port: int = 8081,
        job_manager_memory_mb: int = 1000,
        task_manager_memory_mb: int = 1400,
    ) -> None:
        self._layout = Layout(Path(folder).expanduser().resolve())
        self._machines = Machines(self._layout)
        try:
            self.settings = ClusterSettings(
                task_managers=task_managers,
                slots=slots,
                parallelism=parallelism,
                checkpoint_interval=checkpoint_interval,
                rest_port=rest_port,
                job_manager_memory_mb=job_manager_memory_mb,
                task_manager_memory_mb=task_manager_memory_mb,
            )
        except ValidationError as error:
            wrong = "; ".join(f"{e['loc'][0]}={e['input']!r}: {e['msg']}" for e in error.errors())
            raise ClusterError(f"FlinkCluster: {wrong}") from error
        self._check_parallelism(parallelism)

    @classmethod
    def load(cls, folder: Path | str) -> FlinkCluster:
        """The cluster that was started in `folder`, by this or another program.

        Raises:
            ClusterError: There is none.
        """
        state = Machines(Layout(Path(folder).expanduser().resolve())).state()
        if state is None:
            raise ClusterError(f"no cluster was started in {str(folder)!r}, or it was taken down: start it with `up`")
        return cls(folder, **dict(state.settings))

    def up(self) -> None:
        """Start what does not run: all of it, or what has died since. Nothing happens to what runs.

        Raises:
            ClusterError: It runs with other settings, the port is taken, or a process did not start.
            FlinkUnavailable: There is no Java or Maven, or Flink could not be downloaded.
        """
        self._machines.up(self.settings)

    def down(self) -> None:
        """End all processes, and with them the jobs. Logs, checkpoints and savepoints stay."""
        self._machines.down()

    @property
    def folder(self) -> Path:
        """The cluster's folder."""
        return self._layout.folder

    @property
    def logs(self) -> Path:
        """The folder with a log file for each process, and each submitted program."""
        return self._layout.logs

    @property
    def savepoints(self) -> Path:
        """A folder for savepoints."""
        return self._layout.savepoints

    @property
    def rest_url(self) -> str:
        """The web UI and REST interface."""
        return self.rest.url

    @property
    def job_endpoint(self) -> str:
        """Where the job server takes pipelines."""
        return self._state().job_endpoint

    @property
    def rest(self) -> FlinkRest:
        """The JobManager's REST interface."""
        return self._state().rest

    @property
    def job_manager(self) -> ManagedProcess:
        """The JobManager, also when it has died."""
        return _present(self._state().job_manager, "JobManager")

    @property
    def job_server(self) -> ManagedProcess:
        """The job server, also when it has died."""
        return _present(self._state().job_server, "job server")

    @property
    def task_managers(self) -> list[ManagedProcess]:
        """The TaskManagers, also those that have died and were not replaced."""
        return self._state().task_managers

    def processes(self) -> list[ManagedProcess]:
        """The JobManager, the job server and the TaskManagers, also those that have died."""
        return self._state().processes()

    def start_job_manager(self) -> ManagedProcess:
        """Start the JobManager again, on the same ports, and wait until it answers. It has forgotten all jobs.

        Raises:
            ClusterError: It still runs, or did not start.
        """
        return self._machines.start_job_manager()

    def start_task_manager(self) -> ManagedProcess:
        """Replace a TaskManager that has died, or add one if none has, and wait until it is registered.

        Raises:
            ClusterError: It did not start.
        """
        return self._machines.start_task_manager()

    def workers(self) -> list[int]:
        """The process ids of the jobs' Python workers."""
        return [process.pid for process in self._machines.workers()]

    def report(self) -> str:
        """For errors: why the jobs failed or were restarted, and the ends of all logs."""
        try:
            reasons = [
                f"---- job {job.name!r} ({job.id}) is {job.state}\n" + "\n".join(self.rest.exceptions(job.id)[:2])
                for job in self.rest.jobs()
            ]
        except (ClusterError, RestError) as error:
            reasons = [str(error)]
        return "\n".join([*reasons, self._machines.log_tails()])

    def newest_checkpoint(self, job: str | None = None) -> Path | None:
        """The newest completed checkpoint that is kept, to resume from when the JobManager was lost.

        Args:
            job: Flink's id of the job; by default that of any job. One that had no checkpoint of its own yet goes on
                from where it was itself restored from.
        """
        which = "*" if job is None else job
        found = [path.parent for path in self._layout.checkpoints.glob(f"{which}/chk-*/_metadata")]
        if found:
            return max(found, key=lambda path: (path.joinpath("_metadata").stat().st_mtime_ns, path.name))
        if job is not None:
            for submission in self.submissions():
                if submission.job == job and submission.restored is not None:
                    return Path(submission.restored.removeprefix("file:"))
        return None

    def submissions(self) -> list[Submission]:
        """The jobs that were submitted in this folder, also before it was last taken down, the newest first."""
        try:
            lines = self._layout.submissions.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [Submission.model_validate_json(line) for line in reversed(lines)]

    def submit_arguments(
        self,
        *,
        name: str = "beam-agents",
        parallelism: int | None = None,
        checkpoint_interval: timedelta | None = None,
        savepoint_path: Path | str | None = None,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> list[str]:
        """The options of a pipeline that is to run on this cluster.

        Args:
            name: The job's name in Flink.
            parallelism: By default the cluster's.
            checkpoint_interval: By default the cluster's.
            savepoint_path: A checkpoint or savepoint to start from, a path or URL.
            directory: Where the Python workers start and find the user's modules; by default the working directory.
            environment: The workers' variables; by default those of this program.

        Raises:
            ClusterError: It is not up, or has too few slots.
        """
        parallelism = self.settings.parallelism if parallelism is None else parallelism
        self._check_parallelism(parallelism)
        interval = self.settings.checkpoint_interval if checkpoint_interval is None else checkpoint_interval
        script = self._layout.jobs / f"{name}-{secrets.token_hex(4)}" / "worker.sh"
        write_worker_script(
            script,
            cluster=self.folder,
            logs=self.logs,
            temporary=self._layout.temporary,
            directory=(directory or Path.cwd()).resolve(),
            environment=os.environ if environment is None else environment,
        )
        arguments = [
            "--runner=PortableRunner",
            f"--job_endpoint={self.job_endpoint}",
            f"--job_name={name}",
            "--environment_type=PROCESS",
            f"--environment_config={json.dumps({'command': str(script)})}",
            f"--parallelism={parallelism}",
            f"--max_parallelism={_MAX_PARALLELISM}",
            f"--checkpointing_interval={round(interval / timedelta(milliseconds=1))}",
            # Sic: without a value this turns chaining off. A graph that chains differently at another parallelism
            # could not be restored.
            "--operator_chaining",
        ]
        if savepoint_path is not None:
            arguments.append(f"--savepoint_path={_location(savepoint_path)}")
        return arguments

    def submit(
        self,
        command: Sequence[str],
        *,
        parallelism: int | None = None,
        checkpoint_interval: timedelta | None = None,
        savepoint_path: Path | str | None = None,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        timeout: float = 180,
    ) -> str:
        """Run a pipeline program with this cluster's options until its job is at work; the program is ended then.

        The job's Python workers get the program's folder and environment variables.

        Args:
            command: The program and its arguments; it has to give them to `PipelineOptions`. What they say of
                parallelism, checkpoints or chaining holds.
            parallelism: By default the cluster's.
            checkpoint_interval: By default the cluster's.
            savepoint_path: A checkpoint or savepoint to start from, a path or URL.
            directory: Where the program runs; by default the working directory.
            environment: Its variables; by default those of this program.
            timeout: In seconds.

        Returns:
            Flink's id of the job. A job on bounded input may have finished already.

        Raises:
            SubmitFailed: The program or the job failed, or took too long.
            ClusterError: The cluster is not up, or has too few slots.
        """
        program = program_name(command)
        name = f"{program}-{secrets.token_hex(4)}"
        directory = (directory or Path.cwd()).resolve()
        environment = os.environ if environment is None else environment
        arguments = self.submit_arguments(
            name=name,
            parallelism=parallelism,
            checkpoint_interval=checkpoint_interval,
            savepoint_path=savepoint_path,
            directory=directory,
            environment=environment,
        )
        given = {argument.partition("=")[0] for argument in command} & _LEFT_TO_PROGRAMS
        job = run_until_job_runs(
            [*command, *(each for each in arguments if each.partition("=")[0] not in given)],
            name=name,
            rest=self.rest,
            output=self.logs / f"submit-{name}.log",
            directory=directory,
            environment=environment,
            timeout=timeout,
        )
        restored = None if savepoint_path is None else _location(savepoint_path)
        with self._layout.submissions.open("a") as file:
            file.write(Submission(job=job, name=name, program=program, restored=restored).model_dump_json() + "\n")
        return job

    def _state(self) -> ClusterState:
        state = self._machines.state()
        if state is None:
            raise ClusterError(f"the cluster in {str(self.folder)!r} is not up: start it with `up`")
        return state

    def _check_parallelism(self, parallelism: int) -> None:
        slots = self.settings.task_managers * self.settings.slots
        if parallelism > slots:
            raise ClusterError(
                f"parallelism {parallelism!r} needs as many slots, and {self.settings.task_managers} TaskManagers of "
                f"{self.settings.slots} have {slots}: raise task_managers or slots"
            )


def _present(process: ManagedProcess | None, name: str) -> ManagedProcess:
    if process is None:
        raise ClusterError(f"the {name} was never started: start the cluster with `up`")
    return process


def _location(path: Path | str) -> str:
    return path if isinstance(path, str) and ":" in path else Path(path).resolve().as_uri()
