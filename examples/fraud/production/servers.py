"""Kafka, PostgreSQL and Flink on this machine, with the job on it: started, started again when they die, ended."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from beam_agents.codec import canonical_json
from examples.fraud.generator import blocklist, merchants
from examples.fraud.production.bank import BANK, ROLE, holds, make_databases, make_tables
from examples.fraud.production.topics import DECISIONS, FAILURES, TRACE, make_topics, records
from runners.flink.cluster import FlinkCluster
from runners.kafka import KafkaServer
from runners.postgres import PostgresServer

_ROOT = Path(__file__).resolve().parents[3]
_KEPT = (DECISIONS, FAILURES, TRACE)


class Running(BaseModel):
    """What other commands need to know; stands in a file that only its owner may read."""

    pid: int
    """Of the program that holds it all."""
    keep: bool
    folders: list[Path]
    """The servers' own, which are left behind when that program is killed."""
    servers: str
    """Kafka's."""
    bank: str
    """URL of the bank's database, for its administrator."""
    kafka_pid: int | None = None
    postgres_pid: int | None = None
    job: str = ""
    """Flink's id of it; empty until it runs."""


class Folder:
    """Where everything is noted.

    Args:
        path: The folder; made by `held`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()

    @property
    def flink(self) -> Path:
        """The cluster's folder."""
        return self.path / "flink"

    def running(self) -> Running | None:
        """What was noted last; `None` if nothing was, or it was ended."""
        try:
            return Running.model_validate_json(self._note.read_bytes())
        except FileNotFoundError:
            return None

    def note(self, running: Running) -> None:
        """Writes it down."""
        unfinished = self._note.with_suffix(".part")
        unfinished.touch(mode=0o600)
        unfinished.write_text(running.model_dump_json())
        unfinished.replace(self._note)

    @contextmanager
    def held(self, *, wait: bool = False) -> Iterator[bool]:
        """Holds the folder, unless another program does; whether it is held.

        Args:
            wait: Waits until no other program holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as lock:  # ends with this process, however that ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def clear(self) -> None:
        """Ends what a program that was killed left running, and deletes what it left outside this folder."""
        running = self.running()
        if self.flink.is_dir():
            FlinkCluster(self.flink).down()
        for folder in running.folders if running else []:
            shutil.rmtree(folder, ignore_errors=True)
        self._note.unlink(missing_ok=True)

    def leave(self, *, keep: bool) -> None:
        """As `clear`, and deletes what was made here.

        Args:
            keep: But for Flink's logs and checkpoints, and the files of `save`.
        """
        self.clear()
        if not keep:
            shutil.rmtree(self.flink, ignore_errors=True)
        self._lock.unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def save(self, running: Running) -> None:
        """Writes what is in the topics and the bank's table of holds into files."""
        for topic in _KEPT:
            with (self.path / f"{topic}.jsonl").open("wb") as file:
                file.writelines((message.value() or b"null") + b"\n" for message in records(running.servers, [topic]))
        with (self.path / "holds.jsonl").open("w") as file:
            file.writelines(f"{canonical_json(row._asdict())}\n" for row in holds(running.bank))

    @property
    def _note(self) -> Path:
        return self.path / "running.json"

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"


class Platform:
    """All that runs. Kafka and PostgreSQL end with this process, however that ends; the cluster needs `end`.

    Args:
        folder: Held by this process.
        cluster: What Flink is to be like; not started yet.
        model: The job's options that choose a model.
        keep: Leave logs, checkpoints and what came out in the folder.
        say: Told what happens.
    """

    def __init__(
        self, folder: Folder, cluster: FlinkCluster, model: Sequence[str], *, keep: bool, say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._cluster = cluster
        self._model = model
        self._keep = keep
        self._say = say
        self._password = secrets.token_urlsafe(16)
        self._kafka: KafkaServer | None = None
        self._postgres: PostgresServer | None = None
        self._job = ""

    def start(self) -> Running:
        """Starts the servers, makes topics and tables, and submits the job.

        Raises:
            RuntimeError: Something cannot be had or does not start; the message says what.
        """
        self._say("Kafka and PostgreSQL ...")
        self._kafka = KafkaServer()
        self._postgres = PostgresServer()
        self._note()
        self._kafka.start()
        self._postgres.start()
        self._note()
        make_topics(self._kafka.servers)
        make_databases(self._postgres.url(), self._password)
        make_tables(self._postgres.url("bank"), merchants().items(), blocklist().items())
        self._say("Flink ...")
        self._cluster.up()
        self._say("The job ...")
        self._submit()
        return self._note()

    def look(self) -> None:
        """Starts again what has died since the last look; what supervises the servers does this in production."""
        assert self._kafka is not None
        assert self._postgres is not None
        if _dead(self._kafka.pid):
            self._say("Kafka's broker is dead: it is started again.")
            self._kafka.restart()
            self._note()
        if _dead(self._postgres.pid):
            self._say("PostgreSQL is dead: it is started again.")
            self._postgres.kill()
            self._postgres.start()
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
        running = self._folder.running()
        try:
            if self._keep and running is not None and running.job:
                self._cluster.down()  # what is in the topics then does not change any more
                self._folder.save(running)
        finally:
            for server in (self._kafka, self._postgres):
                if server is not None:
                    server.remove()
            self._folder.leave(keep=self._keep)

    def _submit(self, checkpoint: Path | None = None) -> None:
        assert self._kafka is not None
        assert self._postgres is not None
        ledger = f"postgresql://{ROLE}@127.0.0.1:{self._postgres.port}/ledger"
        program = [sys.executable, "-m", "examples.fraud.production.job", "--job_name=fraud"]
        self._job = self._cluster.submit(
            [*program, f"--servers={self._kafka.servers}", f"--ledger={ledger}", *self._model],
            savepoint_path=checkpoint,
            directory=_ROOT,
            environment={
                **os.environ,
                "PGPASSWORD": self._password,
                BANK.variable: self._postgres.url("bank", ROLE, self._password),
            },
        )

    def _note(self) -> Running:
        assert self._kafka is not None
        assert self._postgres is not None
        running = Running(
            pid=os.getpid(),
            keep=self._keep,
            folders=[self._kafka.folder, self._postgres.folder],
            servers=self._kafka.servers,
            bank=self._postgres.url("bank"),
            kafka_pid=self._kafka.pid,
            postgres_pid=self._postgres.pid,
            job=self._job,
        )
        self._folder.note(running)
        return running


def _dead(pid: int | None) -> bool:
    """Whether a child of this process has ended; it stays there to be asked for."""
    return pid is None or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
