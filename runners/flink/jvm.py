"""The command lines of a cluster's JVMs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from runners.flink.config import Layout, Ports
from runners.flink.errors import FlinkUnavailable
from runners.flink.install import install_flink, install_job_server
from runners.flink.java import MODULE_OPTIONS, find_java

_RESULT = "BASH_JAVA_UTILS_EXEC_RESULT:"
_JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
_MEMORY = "org.apache.flink.runtime.util.bash.BashJavaUtils"

JvmMemory = tuple[list[str], list[str]]
"""What the memory settings of a process come to: options of the JVM, options of the program."""


def job_manager_memory(layout: Layout) -> JvmMemory:
    """What Flink makes of the JobManager's memory settings; takes a second or more."""
    return _memory(layout, "GET_JM_RESOURCE_PARAMS")


def task_manager_memory(layout: Layout) -> JvmMemory:
    """What Flink makes of the TaskManagers' memory settings; takes a second or more."""
    return _memory(layout, "GET_TM_RESOURCE_PARAMS")


def jvm_mark(layout: Layout) -> str:
    """An argument by which the JVMs of a cluster are known."""
    return f"-Dbeam.agents.cluster={layout.folder}"


def job_manager_command(layout: Layout, memory: JvmMemory) -> list[str]:
    """Starts the JobManager."""
    return _flink_command(layout, "job-manager", _JOB_MANAGER, memory, [])


def task_manager_command(layout: Layout, memory: JvmMemory, name: str, resource: str) -> list[str]:
    """Starts a TaskManager that registers as `resource`."""
    return _flink_command(layout, name, _TASK_MANAGER, memory, ["-D", f"taskmanager.resource-id={resource}"])


def job_server_command(layout: Layout, ports: Ports) -> list[str]:
    """Starts the job server, which takes pipelines from Beam's SDKs and hands jobs to the JobManager."""
    logger = "-Dorg.slf4j.simpleLogger"
    return [
        str(find_java()),
        jvm_mark(layout),
        "-Xmx512m",
        f"-XX:ErrorFile={layout.logs}/job-server-crash.log",
        *MODULE_OPTIONS,
        # It asks for the state of each job several times a second and logs that at `info`.
        f"{logger}.defaultLogLevel=warn",
        f"{logger}.showDateTime=true",
        f"{logger}.dateTimeFormat=yyyy-MM-dd HH:mm:ss",
        f"{logger}.log.org.apache.beam.runners.flink=info",
        f"{logger}.log.org.apache.beam.runners.jobsubmission=info",
        f"-Djava.io.tmpdir={layout.temporary}",
        "-cp",
        str(install_job_server()),
        "org.apache.beam.runners.flink.FlinkJobServerDriver",
        f"--flink-master=127.0.0.1:{ports.rest}",
        f"--artifacts-dir={layout.temporary / 'artifacts'}",
        "--job-host=localhost",
        f"--job-port={ports.job}",
        f"--artifact-port={ports.artifact}",
        f"--expansion-port={ports.expansion}",
        # It settles for each job whether checkpoints are kept, by this and not by what the JobManager was told.
        f"--flink-conf-dir={layout.configuration}",
    ]


def _flink_command(layout: Layout, name: str, program: str, memory: JvmMemory, options: Sequence[str]) -> list[str]:
    of_jvm, of_program = memory
    return [
        str(find_java()),
        jvm_mark(layout),
        "-XX:+UseG1GC",
        *of_jvm,
        *MODULE_OPTIONS,
        f"-Dlog.file={layout.logs / name}.log",
        f"-Dlog4j.configurationFile={layout.configuration.joinpath('log4j.properties').as_uri()}",
        f"-XX:ErrorFile={layout.logs}/{name}-crash.log",
        f"-Djava.io.tmpdir={layout.temporary}",
        "-cp",
        _class_path(),
        program,
        "--configDir",
        str(layout.configuration),
        *of_program,
        *options,
    ]


def _class_path() -> str:
    # The planner is for SQL; it is big and slow to load.
    jars = install_flink().joinpath("lib").glob("*.jar")
    return ":".join(sorted(str(jar) for jar in jars if "table-planner" not in jar.name))


def _memory(layout: Layout, question: str) -> JvmMemory:
    path = f"{install_flink() / 'bin' / 'bash-java-utils.jar'}:{_class_path()}"
    command = [str(find_java()), "-XX:TieredStopAtLevel=1", "-cp", path, _MEMORY, question]
    done = subprocess.run(
        [*command, "--configDir", str(layout.configuration)], capture_output=True, text=True, check=False
    )
    lines = [line.removeprefix(_RESULT) for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    if done.returncode != 0 or len(lines) != 2:
        raise FlinkUnavailable(f"Flink does not accept its memory settings: {(done.stdout + done.stderr).strip()}")
    return lines[0].split(), lines[1].split()
