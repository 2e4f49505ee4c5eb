"""Starts and stops the processes of a cluster, and remembers them in `cluster.json`."""

from __future__ import annotations

import fcntl
import os
import random
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from pydantic import BaseModel, ValidationError

from runners.flink.config import ClusterSettings, Layout, Ports, write_configuration
from runners.flink.errors import ClusterError, RestError
from runners.flink.jvm import (
    JvmMemory,
    job_manager_command,
    job_manager_memory,
    job_server_command,
    jvm_mark,
    task_manager_command,
    task_manager_memory,
)
from runners.flink.processes import ManagedProcess, find_processes, start_process, stop_processes
from runners.flink.rest import FlinkRest

WORKER_MARK = "--beam-agents-cluster="
"""Begins the argument by which the Python workers of a cluster are known; its folder follows."""

# Below what systems give to outgoing connections, so that a port is still free when its process is started again.
_PORTS = range(20_000, 32_000)
_START_SECONDS = 90.0
_POLL = 0.1
_TAIL = 2_000


class ClusterState(BaseModel):
    """What `cluster.json` has."""

    settings: ClusterSettings
    ports: Ports
    job_manager_memory: JvmMemory
    task_manager_memory: JvmMemory
    job_manager: ManagedProcess | None = None
    job_server: ManagedProcess | None = None
    task_managers: list[ManagedProcess] = []

    @property
    def rest(self) -> FlinkRest:
        """The JobManager's REST interface."""
        return FlinkRest(f"http://127.0.0.1:{self.ports.rest}")

    @property
    def job_endpoint(self) -> str:
        """Where the job server takes pipelines."""
        return f"localhost:{self.ports.job}"

    def processes(self) -> list[ManagedProcess]:
        """All that were started, also those that have died."""
        return [process for process in (self.job_manager, self.job_server) if process is not None] + self.task_managers


class Machines:
    """The processes of the cluster in a folder. One program at a time changes them."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def state(self) -> ClusterState | None:
        """What was started; `None` if nothing was, or it was taken down."""
        try:
            return ClusterState.model_validate_json(self._layout.state.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise ClusterError(
                f"{str(self._layout.state)!r} is not of this version: take the cluster down with the version that "
                f"started it, or remove the file: {error}"
            ) from error

    def up(self, settings: ClusterSettings) -> None:
        """Start what does not run."""
        with self._alone():
            state = self.state()
            if state is not None and not any(process.alive() for process in state.processes()):
                state = None
            if state is not None and state.settings != settings:
                changed = [
                    f"{name} is {getattr(state.settings, name)!s} and not {value!s}"
                    for name, value in settings
                    if getattr(state.settings, name) != value
                ]
                raise ClusterError(
                    f"the cluster in {str(self._layout.folder)!r} runs with other settings: {', '.join(changed)}; "
                    "take it down first"
                )
            fresh = state is None
            if state is None:
                self._stop(None)
                state = self._prepare(settings)
            try:
                self._start_missing(state)
            except BaseException:
                if fresh:
                    self._stop(state)
                    self._layout.state.unlink(missing_ok=True)
                raise

    def down(self) -> None:
        """End all."""
        with self._alone():
            self._stop(self.state())
            self._layout.state.unlink(missing_ok=True)
            for folder in (self._layout.jobs, self._layout.temporary):
                shutil.rmtree(folder, ignore_errors=True)

    def start_job_manager(self) -> ManagedProcess:
        """Start the JobManager again and wait until it answers."""
        with self._alone():
            state = self._present()
            if state.job_manager is not None and state.job_manager.alive():
                raise ClusterError(f"the JobManager still runs, as process {state.job_manager.pid}")
            started = self._start_job_manager(state)
            self._wait_for_rest(state)
            return started

    def start_task_manager(self) -> ManagedProcess:
        """Replace a TaskManager that has died, or add one if none has, and wait until it is registered."""
        with self._alone():
            state = self._present()
            dead = [index for index, each in enumerate(state.task_managers) if not each.alive()]
            place = dead[0] if dead else len(state.task_managers)
            self._wait_for_task_managers(state, {self._start_task_manager(state, place)})
            return state.task_managers[place]

    def workers(self) -> list[ManagedProcess]:
        """The Python workers of the cluster's jobs."""
        return find_processes(f"{WORKER_MARK}{self._layout.folder}")

    def log_tails(self) -> str:
        """The ends of all logs, the last written one last."""
        logs = sorted(self._layout.logs.glob("*"), key=lambda path: path.stat().st_mtime)
        tails = [(path.name, _tail(path.read_bytes())) for path in logs]
        return "\n".join(f"---- {name}\n{tail}" for name, tail in tails if tail)

    def _present(self) -> ClusterState:
        state = self.state()
        if state is None:
            raise ClusterError(f"the cluster in {str(self._layout.folder)!r} is not up")
        return state

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._layout.folder.mkdir(parents=True, exist_ok=True)
        with self._layout.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prepare(self, settings: ClusterSettings) -> ClusterState:
        if settings.rest_port and not _is_free(settings.rest_port):
            raise ClusterError(
                f"port {settings.rest_port}, for the web UI, is taken: end what listens there, or choose another with "
                "rest_port (0 takes a free one)"
            )
        free = (port for port in random.sample(_PORTS, len(_PORTS)) if port != settings.rest_port and _is_free(port))
        rest = settings.rest_port or next(free)
        rpc, blob, job, artifact, expansion = (next(free) for _ in range(5))
        ports = Ports(rest=rest, rpc=rpc, blob=blob, job=job, artifact=artifact, expansion=expansion)
        self._layout.make()
        write_configuration(self._layout, settings, ports)
        with ThreadPoolExecutor() as pool:
            of_job_manager = pool.submit(job_manager_memory, self._layout)
            of_task_manager = pool.submit(task_manager_memory, self._layout)
            return ClusterState(
                settings=settings,
                ports=ports,
                job_manager_memory=of_job_manager.result(),
                task_manager_memory=of_task_manager.result(),
            )

    def _start_missing(self, state: ClusterState) -> None:
        if state.job_server is None or not state.job_server.alive():
            state.job_server = self._start("job-server", job_server_command(self._layout, state.ports))
            self._save(state)
        if state.job_manager is None or not state.job_manager.alive():
            self._start_job_manager(state)
        # A TaskManager that does not find the JobManager asks again only after ten seconds.
        self._wait_for_rest(state)
        count = max(state.settings.task_managers, len(state.task_managers))
        missing = [i for i in range(count) if i >= len(state.task_managers) or not state.task_managers[i].alive()]
        started = {self._start_task_manager(state, index) for index in missing}
        self._wait_for_task_managers(state, started)
        self._wait_for_job_server(state)

    def _start_job_manager(self, state: ClusterState) -> ManagedProcess:
        command = job_manager_command(self._layout, state.job_manager_memory)
        state.job_manager = self._start("job-manager", command)
        self._save(state)
        return state.job_manager

    def _start_task_manager(self, state: ClusterState, index: int) -> str:
        # Another id each time, or the one that has died would be taken for it.
        resource = f"task-manager-{index + 1}-{secrets.token_hex(3)}"
        name = f"task-manager-{index + 1}"
        command = task_manager_command(self._layout, state.task_manager_memory, name, resource)
        state.task_managers[index : index + 1] = [self._start(name, command)]
        self._save(state)
        return resource

    def _start(self, name: str, command: Sequence[str]) -> ManagedProcess:
        return start_process(name, command, output=self._layout.logs / f"{name}.out", environment=os.environ)

    def _save(self, state: ClusterState) -> None:
        part = self._layout.state.with_suffix(".part")
        part.write_text(state.model_dump_json(indent=2))
        part.replace(self._layout.state)

    def _stop(self, state: ClusterState | None) -> None:
        """Ends what is known, and what a program started that was killed before it could write that down."""
        known = state.processes() if state is not None else []
        stop_processes([*known, *find_processes(jvm_mark(self._layout))])
        stop_processes(self.workers())

    def _wait_for_rest(self, state: ClusterState) -> None:
        def answers() -> bool:
            try:
                state.rest.jobs()
            except RestError:
                return False
            return True

        self._wait(answers, [state.job_manager], "the JobManager does not answer")

    def _wait_for_task_managers(self, state: ClusterState, resources: set[str]) -> None:
        def registered() -> bool:
            try:
                return resources <= {each.id for each in state.rest.task_managers()}
            except RestError:
                return False

        # Another one may be dead, and is replaced by a call of its own.
        processes = [state.job_manager, *(each for each in state.task_managers if each.alive())]
        self._wait(registered, processes, f"the TaskManagers {sorted(resources)!r} are not registered")

    def _wait_for_job_server(self, state: ClusterState) -> None:
        def ready() -> bool:
            try:
                with grpc.insecure_channel(state.job_endpoint) as channel:
                    grpc.channel_ready_future(channel).result(timeout=1)
            except grpc.FutureTimeoutError:
                return False
            return True

        self._wait(ready, [state.job_server], f"the job server does not answer at {state.job_endpoint!r}")

    def _wait(self, ready: Callable[[], bool], processes: Sequence[ManagedProcess | None], problem: str) -> None:
        until = time.monotonic() + _START_SECONDS
        while not ready():
            dead = [process.name for process in processes if process is not None and not process.alive()]
            if dead or time.monotonic() > until:
                reason = f"{', '.join(dead)} ended" if dead else f"{_START_SECONDS:g} s have passed"
                raise ClusterError(f"{problem}, and {reason}; logs in {str(self._layout.logs)!r}:\n{self.log_tails()}")
            time.sleep(_POLL)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As Flink does: connections of an earlier owner that are not quite over do not matter.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _tail(content: bytes) -> str:
    return content[-_TAIL:].decode(errors="replace").strip()
