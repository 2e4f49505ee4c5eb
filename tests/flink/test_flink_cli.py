"""`beam-agents flink`: what it says when a command cannot be carried out, and each command on a real cluster."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from beam_agents import cli
from runners.flink import cli as flink_cli
from runners.flink.cluster import FlinkCluster
from runners.flink.rest import FlinkRest, JobSummary
from runners.flink.status import ClusterStatus, PartStatus, job_status, lines, root_cause
from runners.flink.submission import Submission

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).with_name("endless_job.py")


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Carries out a command on the cluster of `tmp_path`: exit code, output, errors."""

    def run(command: str, *program: str) -> tuple[int, str, str]:
        words = [*shlex.split(command), "--folder", str(tmp_path / "cluster")]
        code = cli.main(["flink", *words, *(("--", *program) if program else ())])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


# ---- what cannot be carried out ----


@pytest.mark.parametrize("command", ["status", "savepoint", "cancel", "submit"])
def test_without_a_cluster_it_says_what_to_do(run: Any, command: str) -> None:
    code, out, err = run(command, *([str(JOB)] if command == "submit" else []))

    assert (code, out) == (2, "")
    assert re.match(
        rf"beam-agents flink {command}: no cluster was started in '.*cluster'.*`(beam-agents flink )?up`", err
    )


def test_down_is_done_when_there_is_nothing(run: Any) -> None:
    assert run("down") == (0, "", "")


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ([], "name the pipeline's program after '--', for example: -- my_pipeline.py"),
        (["missing.py"], "there is no file 'missing.py'; a module is given as '-- -m missing.py'"),
        (["-m"], "name a module after '-m'"),
        (["-m", "no_such.module"], "there is no module 'no_such.module' that this Python"),
    ],
)
def test_a_program_that_is_not_there_is_named(run: Any, program: list[str], says: str) -> None:
    code, _, err = run("submit", *program)

    assert code == 2
    assert err.startswith(f"beam-agents flink submit: {says}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["flnk"], "invalid choice: 'flnk'"),
        (["flink"], "the following arguments are required: COMMAND"),
        (["flink", "up", "--slots=0"], "argument --slots: '0' is no whole number above 0"),
        (["flink", "submit", "--resume", "--from=x"], "argument --from: not allowed with argument --resume"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)

    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_without_java_it_says_so(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))

    code, _, err = run("up --port 0")

    assert code == 2
    assert err.startswith("beam-agents flink up: Flink needs Java 11 to 17, and JAVA_HOME")


def test_more_parallel_than_slots_is_refused(run: Any) -> None:
    code, _, err = run("up --slots 1 --parallelism 2")

    assert code == 2
    assert "slots" in err


class Rest(FlinkRest):
    """A JobManager that has these jobs."""

    def __init__(self, *jobs: tuple[str, str, str]) -> None:
        super().__init__("http://127.0.0.1:1")
        self._jobs = [JobSummary(id=job, name=name, state=state, started=0) for job, name, state in jobs]
        self.cancelled: list[str] = []

    def jobs(self) -> list[JobSummary]:
        return self._jobs

    def cancel(self, job: str, *, timeout: float = 60) -> None:
        self.cancelled.append(job)


def load(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> None:
    """Lets the commands find a cluster made of these."""
    alive = SimpleNamespace(alive=lambda: True)
    cluster = SimpleNamespace(**{"job_manager": alive, "folder": Path("cluster"), **parts})
    monkeypatch.setattr(flink_cli.FlinkCluster, "load", lambda folder: cluster)


def test_of_several_jobs_one_is_to_be_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = Rest(("aa11", "fraud", "RUNNING"), ("ab22", "support", "RESTARTING"), ("cc33", "old", "FINISHED"))
    load(monkeypatch, rest=rest)
    names = "aa11 ('fraud', RUNNING), ab22 ('support', RESTARTING)"

    assert run("cancel")[2] == (
        f"beam-agents flink cancel: several jobs run, name one by the beginning of its id: {names}\n"
    )
    assert run("cancel a")[0] == 2
    assert f"no running job's id begins with 'cc33'; there run: {names}" in run("cancel cc33")[2]
    assert rest.cancelled == []
    assert run("cancel aa")[0] == 0
    assert rest.cancelled == ["aa11"]


def test_no_job_and_a_dead_job_manager_are_said(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, rest=Rest())
    assert run("savepoint") == (2, "", "beam-agents flink savepoint: no job runs\n")

    load(monkeypatch, job_manager=SimpleNamespace(alive=lambda: False))
    assert "has died; start it: beam-agents flink up" in run("savepoint")[2]


def test_resume_needs_a_job_that_has_ended_and_left_something(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    last = Submission(job="aa11bb22", name="endless_job-1", program="endless_job", restored=None)
    parts: dict[str, Any] = {"rest": Rest(), "savepoints": tmp_path, "newest_checkpoint": lambda job: None}

    load(monkeypatch, **parts, submissions=lambda: [last.model_copy(update={"program": "fraud"})])
    assert (
        "no job of 'endless_job' was submitted in 'cluster', only of: 'fraud'; " in run("submit --resume", str(JOB))[2]
    )

    load(monkeypatch, **parts, submissions=lambda: [last])
    assert "aa11bb22, left no checkpoint; submit without --resume" in run("submit --resume", str(JOB))[2]

    load(monkeypatch, **{**parts, "rest": Rest(("aa11bb22", "endless_job-1", "RUNNING"))}, submissions=lambda: [last])
    assert "aa11bb22, runs; end it first" in run("submit --resume", str(JOB))[2]


def test_resume_takes_the_newer_of_checkpoint_and_savepoint_and_shows_warnings(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def complete(name: str) -> Path:
        made = tmp_path / name
        made.mkdir(parents=True)
        made.joinpath("_metadata").touch()
        return made

    checkpoint = complete("checkpoints/aa11bb22/chk-7")
    started: list[Any] = []
    warning = "stream.py:7: FlinkWarning: --max_bundle_time_mills=1000: ..."
    tmp_path.joinpath("submit-endless_job-2.log").write_text(f"INFO: prepares\n{warning}\n  pipeline | ...\n")

    def submission(job: str, number: int) -> Submission:
        return Submission(job=job, name=f"endless_job-{number}", program="endless_job", restored=None)

    def submit(command: list[str], *, parallelism: int | None, savepoint_path: Path) -> str:
        started.append((command, parallelism, savepoint_path))
        return "ee55"

    load(
        monkeypatch,
        rest=Rest(),
        rest_url="http://web",
        savepoints=tmp_path / "savepoints",
        newest_checkpoint=lambda job: checkpoint if job == "aa11bb22" else None,
        submissions=lambda: [*([submission("ee55", 2)] if started else []), submission("aa11bb22", 1)],
        submit=submit,
        logs=tmp_path,
    )

    code, out, err = run("submit --resume --parallelism 2", str(JOB), "--folder=x")
    started_first = started.pop()
    savepoint = complete("savepoints/savepoint-aa11bb-1234")
    complete("savepoints/savepoint-ffffff-1234")
    run("submit --resume", str(JOB))

    assert (code, err) == (0, f"{warning}\n")
    assert out == (f"resumes from {checkpoint}\njob ee55 runs: http://web/#/job/ee55/overview\n")
    assert started_first == ([sys.executable, str(JOB), "--folder=x"], 2, checkpoint)
    assert started == [([sys.executable, str(JOB)], None, savepoint)]


def test_the_commands_on_the_page_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "flink.md").read_text(encoding="utf-8")
    commands = re.findall(r"^beam-agents flink ([^#\n]*)", page, re.MULTILINE)
    table = re.findall(r"^\| `(up|submit|status|savepoint|cancel|down) ([^`]*)`", page, re.MULTILINE)

    for command in commands:
        words = shlex.split(command.partition(" -- ")[0])
        assert callable(flink_cli.parser().parse_args(words).action)
    for name, words in table:
        with pytest.raises(SystemExit):
            flink_cli.main([name, "--help"])
        usage = capsys.readouterr().out
        assert all(word in usage for word in words.split()), (name, words)
    assert {command.split()[0] for command in commands} == {"up", "submit", "status", "savepoint", "down"}
    assert {name for name, _ in table} == {"up", "submit", "status", "savepoint", "cancel"}


# ---- the status ----

PYTHON_ERROR = """java.lang.RuntimeException: Error while processing
\tat org.apache.flink.Task.run(Task.java:1)
Caused by: java.util.concurrent.ExecutionException: Error received from SDK harness
\tat java.base/java.util.concurrent.CompletableFuture.get(CompletableFuture.java:2)
Caused by: java.lang.RuntimeException: Error received from SDK harness for 5: Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1498, in process
    return self.do_fn_invoker.invoke_process(windowed_value)
  File "job.py", line 3, in <lambda>
    1 / 0
ZeroDivisionError: division by zero

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "sdk_worker.py", line 311, in _execute
    response = task()
ZeroDivisionError: division by zero [while running 'Divide']

\tat org.apache.beam.runners.fnexecution.control.FnApiControlClient.onNext(FnApiControlClient.java:180)
"""


@pytest.mark.parametrize(
    ("trace", "cause"),
    [
        (PYTHON_ERROR, "ZeroDivisionError: division by zero [while running 'Divide']"),
        (
            "org.apache.flink.JobException: Recovery is suppressed\n\tat a.B.c(B.java:1)\nCaused by: "
            "java.io.IOException: No space left on device\n\tat d.E.f(E.java:2)\n\t... 12 more\n",
            "java.io.IOException: No space left on device",
        ),
        (
            "org.apache.flink.util.FlinkException: TaskManager  lost",
            "org.apache.flink.util.FlinkException: TaskManager lost",
        ),
        ("", ""),
    ],
)
def test_the_cause_of_an_error_is_one_line(trace: str, cause: str) -> None:
    assert root_cause(trace) == cause


def test_the_status_says_what_one_wants_to_know_at_night() -> None:
    now = round(time.time() * 1000)
    job = job_status(
        {"jid": "aa11", "name": "fraud", "state": "RESTARTING", "duration": 7_300_000},
        restarts=4,
        checkpoints={
            "counts": {"completed": 80, "failed": 3},
            "latest": {
                "completed": {"latest_ack_timestamp": now - 130_000, "state_size": 2_400_000, "external_path": "f"}
            },
        },
        exceptions={
            "exceptionHistory": {
                "entries": [
                    {"timestamp": now - 900_000, "stacktrace": "java.lang.Old"},
                    {"timestamp": now - 20_000, "stacktrace": PYTHON_ERROR},
                ]
            }
        },
    )
    parts = [PartStatus("job-manager", 7, True), PartStatus("task-manager-1", 8, False)]
    status = ClusterStatus(folder=".flink", web="http://web", parts=parts, slots=2, slots_free=0, jobs=[job])

    assert list(lines(status)) == [
        "Flink in .flink: http://web, 0 of 2 slots free",
        "  job-manager             7  alive",
        "  task-manager-1          8  DEAD",
        "job aa11 'fraud': RESTARTING for 2 h, restarts 4",
        "  checkpoints      80 completed, 3 failed or declined; the last 2 min ago, 2 MB",
        "  newest error     20 s ago: ZeroDivisionError: division by zero [while running 'Divide']",
    ]


def test_a_job_without_checkpoints_and_errors_has_a_status() -> None:
    job = job_status(
        {"jid": "aa11", "name": "fraud", "state": "FINISHED", "duration": 3_000},
        restarts=0,
        checkpoints={"counts": {"completed": 0, "failed": 0}, "latest": {"completed": None}},
        exceptions={"exceptionHistory": {"entries": []}},
    )
    status = ClusterStatus(folder=".flink", web="http://web", parts=[], slots=0, slots_free=0, jobs=[job])

    assert list(lines(status))[1:] == [
        "job aa11 'fraud': FINISHED after 3 s, restarts 0",
        "  checkpoints      0 completed, 0 failed or declined; none yet",
    ]


# ---- on a real cluster ----


@pytest.mark.flink
@pytest.mark.timeout(600)
def test_a_port_that_is_taken_is_named(run: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run(f"up --port {port}")

    assert code == 2
    assert str(port) in err
    assert run("status")[0] == 2


@pytest.mark.flink
@pytest.mark.timeout(600)
def test_the_commands_on_a_cluster(run: Any, tmp_path: Path) -> None:
    program = (str(JOB), f"--folder={tmp_path}")
    results = tmp_path / "results.txt"
    try:
        code, out, err = run("up --port 0")
        assert (code, err) == (0, "")
        assert run("up") == (0, out, "")  # the second time it finds all at work, with the settings of the first

        code, out, err = run("submit", *program)
        assert (code, err) == (0, "")
        first = re.match(r"job ([0-9a-f]{32}) runs: http://127.0.0.1:\d+/#/job/\1/overview\n", out)
        assert first is not None
        wait_for_more(results, run)

        code, out, err = run("savepoint --stop")
        assert (code, err) == (0, "")
        assert Path(out.strip().removeprefix("file:"), "_metadata").is_file()
        before = len(results.read_text().splitlines())

        code, out, err = run("submit --resume --parallelism 2", *program)
        assert (code, err) == (0, "")
        assert re.match(rf"resumes from .*savepoint-{first[1][:6]}-.*\njob ", out)
        wait_for_more(results, run, than=before)

        code, out, _ = run("status --json")
        status = json.loads(out)
        assert code == 0
        assert all(part["alive"] for part in status["parts"])
        assert [job["state"] for job in status["jobs"]] == ["RUNNING", "FINISHED"]
        assert status["jobs"][1]["id"] == first[1]

        assert run("cancel")[0] == 0
        assert len(set(results.read_text().splitlines())) == len(results.read_text().splitlines())
        FlinkCluster.load(tmp_path / "cluster").task_managers[0].kill()
        code, out, _ = run("status")
        assert code == 1
        assert re.search(r"task-manager-1 +\d+  DEAD", out)
    finally:
        code = run("down")[0]
    assert code == 0
    assert run("status")[0] == 2
    listed = subprocess.run(["ps", "-ww", "-A", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "cluster") not in listed


def wait_for_more(results: Path, run: Any, *, than: int = 0, seconds: float = 90) -> None:
    """Waits until there are two results more than `than`."""
    until = time.monotonic() + seconds
    while not results.exists() or len(results.read_text().splitlines()) < than + 2:
        if time.monotonic() > until:
            logs = (results.parent / "cluster" / "logs").glob("worker-*")
            pytest.fail("\n".join([run("status")[1], *(log.read_text()[-2_000:] for log in logs)]))
        time.sleep(0.2)
