"""Servers, programs and the job on this machine: started, started again when they die, ended."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from examples.production.folder import Folder, Running
from examples.production.programs import Program
from runners.flink.cluster import FlinkCluster
from runners.kafka import KafkaServer
from runners.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
"""Where programs start, and find their modules."""


@dataclass(frozen=True)
class Job:
    """A pipeline program, which is handed the cluster's options as well."""

    module: str
    """What `python -m` runs."""
    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the program and of the job's workers, besides those of this process: for secrets."""


class Platform(ABC):
    """All that runs. Servers and programs end with this process, however that ends; the cluster needs `end`.

    A subclass says what it needs: `postgres_settings` and `uses_kafka`, then, in this order, `prepare`, `programs` and
    `job`.

    Args:
        folder: Held by this process.
        cluster: What Flink is to be like; not started yet.
        chosen: The options of `up`.
        say: Told what happens.

    Attributes:
        password: Of whatever roles the subclass makes; new at each start.
        token: For programs that ask their clients for one; new at each start.
    """

    uses_kafka: ClassVar[bool] = True
    """Whether there is a Kafka broker."""
    postgres_settings: ClassVar[Mapping[str, str] | None] = {}
    """PostgreSQL's settings, such as `{"wal_level": "logical"}`; `None` for no PostgreSQL."""

    def __init__(
        self, folder: Folder, cluster: FlinkCluster, chosen: argparse.Namespace, *, say: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.chosen = chosen
        self.password = secrets.token_urlsafe(16)
        self.token = secrets.token_urlsafe(16)
        self._cluster = cluster
        self._say = say
        self._kafka: KafkaServer | None = None
        self._postgres: PostgresServer | None = None
        self._programs: list[Program] = []
        self._job = ""

    @abstractmethod
    def prepare(self) -> None:
        """Makes topics, roles and tables; the servers run."""

    def programs(self) -> list[Program]:
        """What else is to run; called once, after `prepare`."""
        return []

    @abstractmethod
    def job(self) -> Job:
        """The job; called again when it has to be submitted again."""

    def save(self, running: Running) -> None:
        """Writes what came out into the folder, for `up --keep`; the job has ended, and the servers run."""

    @property
    def kafka(self) -> KafkaServer:
        """The broker."""
        assert self._kafka is not None, "the platform was not started, or has no Kafka"
        return self._kafka

    @property
    def postgres(self) -> PostgresServer:
        """The database server."""
        assert self._postgres is not None, "the platform was not started, or has no PostgreSQL"
        return self._postgres

    def database(self, name: str, role: str) -> str:
        """URL of a database for a role, without its password: workers have that as PGPASSWORD."""
        return f"postgresql://{role}@127.0.0.1:{self.postgres.port}/{name}"

    def start(self) -> Running:
        """Starts the servers, what `prepare` and `programs` say, Flink, and the job.

        Raises:
            RuntimeError: Something cannot be had or does not start; the message says what.
        """
        shutil.rmtree(self.folder.work, ignore_errors=True)
        self.folder.work.mkdir(parents=True)
        if self.uses_kafka:
            self._say("Kafka ...")
            self._kafka = KafkaServer()
            self._note()
            self._kafka.start()
        if self.postgres_settings is not None:
            self._say("PostgreSQL ...")
            self._postgres = PostgresServer(None, **self.postgres_settings)
            self._note()
            self._postgres.start()
        self._note()
        self.prepare()
        self._programs = self.programs()
        for program in self._programs:
            self._say(f"{program.name} ...")
            program.start(self._log(program))
        self._note()
        self._say("Flink ...")
        self._cluster.up()
        self._say("The job ...")
        self._submit()
        return self._note()

    def look(self) -> None:
        """Starts again what has died since the last look; what supervises the servers does this in production."""
        if self._kafka is not None and _dead(self._kafka.pid):
            self._say("Kafka's broker is dead: it is started again.")
            self._kafka.restart()
            self._note()
        if self._postgres is not None and _dead(self._postgres.pid):
            self._say("PostgreSQL is dead: it is started again.")
            self._postgres.kill()
            self._postgres.start()
            self._note()
        for program in self._programs:
            if _dead(program.pid):
                self._say(f"{program.name} is dead: it is started again.")
                program.end()
                program.start(self._log(program))
                self._note()
        dead = [process.name for process in self._cluster.processes() if not process.alive()]
        if dead:
            self._say(f"Dead: {', '.join(dead)}. Started again.")
            forgotten = not self._cluster.job_manager.alive()
            self._cluster.up()
            if forgotten:
                self._say("The JobManager knew the job: it is submitted again, from its newest checkpoint.")
                self._submit(self._cluster.newest_checkpoint(self._job))
                self._note()

    def end(self) -> None:
        """Ends everything, and deletes it unless it is to be kept."""
        running = self.folder.running()
        try:
            if self.chosen.keep and running is not None and running.job:
                self._cluster.down()  # what came out then does not change any more
                self.save(running)
        finally:
            for program in self._programs:
                program.end()
            for server in (self._kafka, self._postgres):
                if server is not None:
                    server.remove()
            self.folder.leave(keep=self.chosen.keep)

    def _submit(self, checkpoint: Path | None = None) -> None:
        job = self.job()
        self._job = self._cluster.submit(
            [sys.executable, "-m", job.module, *job.options],
            savepoint_path=checkpoint,
            directory=ROOT,
            environment={**os.environ, **job.environment},
        )

    def _log(self, program: Program) -> Path:
        return self.folder.work / f"{program.name}.log"

    def _note(self) -> Running:
        servers = {"Kafka": self._kafka, "PostgreSQL": self._postgres}
        parts = {name: server for name, server in servers.items() if server is not None}
        pids = {name: part.pid for name, part in parts.items()} | {each.name: each.pid for each in self._programs}
        running = Running(
            pid=os.getpid(),
            keep=self.chosen.keep,
            folders=[server.folder for server in parts.values()],
            servers=self._kafka.servers if self._kafka is not None else "",
            postgres=self._postgres.url("").removesuffix("/") if self._postgres is not None else "",
            token=self.token,
            urls={program.name: program.url for program in self._programs},
            pids={name: pid for name, pid in pids.items() if pid is not None},
            job=self._job,
        )
        self.folder.note(running)
        return running


def _dead(pid: int | None) -> bool:
    """Whether a child of this process has ended; it stays there to be asked for."""
    return pid is None or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
