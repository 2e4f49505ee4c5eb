"""What a cluster is set to, and the files that tell Flink."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ClusterSettings(BaseModel):
    """What a cluster is set to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_managers: int = Field(1, ge=1, le=64)
    """How many JVMs work."""
    slots: int = Field(2, ge=1, le=64)
    """Slots of each TaskManager: how many parallel instances of a job fit into it."""
    parallelism: int = Field(1, ge=1)
    """Of jobs that do not ask for another."""
    checkpoint_interval: timedelta = Field(timedelta(seconds=2), gt=timedelta(milliseconds=9))
    """Of jobs that do not ask for another."""
    rest_port: int = Field(8081, ge=0, le=65_535)
    """Of the web UI and the REST interface; 0 takes a free one."""
    job_manager_memory_mb: int = Field(1000, ge=800)
    """Of the JobManager's process."""
    task_manager_memory_mb: int = Field(1400, ge=1000)
    """Of each TaskManager's process, without its Python workers."""


class Ports(BaseModel):
    """Where a cluster's processes listen, on loopback."""

    model_config = ConfigDict(frozen=True)

    rest: int
    rpc: int
    blob: int
    job: int
    artifact: int
    expansion: int


class Layout:
    """Where things are in a cluster's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "cluster.json"
        self.lock = folder / ".lock"
        self.submissions = folder / "submissions.jsonl"
        self.configuration = folder / "conf"
        self.logs = folder / "logs"
        self.checkpoints = folder / "checkpoints"
        self.savepoints = folder / "savepoints"
        self.jobs = folder / "jobs"
        self.temporary = folder / "tmp"

    def make(self) -> None:
        """Make the folders that are not there."""
        for each in (self.configuration, self.logs, self.checkpoints, self.savepoints, self.jobs, self.temporary):
            each.mkdir(parents=True, exist_ok=True)


def write_configuration(layout: Layout, settings: ClusterSettings, ports: Ports) -> None:
    """Write Flink's configuration and that of its logs."""
    options = {
        "jobmanager.rpc.address": "127.0.0.1",
        "jobmanager.bind-host": "127.0.0.1",
        "jobmanager.rpc.port": ports.rpc,
        "blob.server.port": ports.blob,
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        "rest.port": ports.rest,
        "taskmanager.host": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "taskmanager.numberOfTaskSlots": settings.slots,
        "parallelism.default": settings.parallelism,
        "jobmanager.memory.process.size": f"{settings.job_manager_memory_mb}m",
        "taskmanager.memory.process.size": f"{settings.task_manager_memory_mb}m",
        "taskmanager.memory.jvm-metaspace.size": "192m",
        "taskmanager.memory.managed.fraction": "0.3",
        "taskmanager.memory.network.min": "32m",
        "taskmanager.memory.network.max": "64m",
        "state.backend.type": "rocksdb",
        "state.backend.incremental": "true",
        "state.checkpoints.dir": layout.checkpoints.as_uri(),
        "state.savepoints.dir": layout.savepoints.as_uri(),
        # One more than needed: while the newest is being read or written, the one before is complete.
        "state.checkpoints.num-retained": 3,
        # By default it goes to the folder of the logs, a file for each task and each time that it is started.
        "state.backend.rocksdb.log.dir": layout.temporary,
        "state.backend.rocksdb.log.level": "WARN_LEVEL",
        # What an operator emits waits that long for more: 100 ms by default, at each of the hops to a key and back.
        "execution.buffer-timeout.interval": "5 ms",
        # So long the barrier waits in the row; then it overtakes the events that are on their way, and they are stored.
        "execution.checkpointing.aligned-checkpoint-timeout": "200 ms",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": 2_147_483_647,
        "restart-strategy.fixed-delay.delay": "1 s",
        "heartbeat.interval": 1000,
        "heartbeat.timeout": 5000,
        # A TaskManager finds a JobManager that was started again within a second and not after ten.
        "cluster.registration.error-delay": 1000,
        "cluster.registration.max-timeout": 2000,
        "io.tmp.dirs": layout.temporary,
    }
    configuration = "".join(f"{name}: {value}\n" for name, value in options.items())
    layout.configuration.joinpath("flink-conf.yaml").write_text(configuration)
    layout.configuration.joinpath("log4j.properties").write_text(_LOG)


# Without the web UI's own polling, and with what a job prints in the file of the process's output.
_LOG = """\
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = File
logger.pekko.name = org.apache.pekko
logger.pekko.level = WARN
logger.netty.name = org.apache.flink.shaded.netty4.io.netty
logger.netty.level = ERROR
appender.file.name = File
appender.file.type = RollingFile
appender.file.fileName = ${sys:log.file}
appender.file.filePattern = ${sys:log.file}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %-5p %-60c %x - %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
"""
