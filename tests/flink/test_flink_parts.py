"""What a cluster is made of, without one: processes, settings, submissions, the installer, the REST client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from runners.flink import install, java, processes
from runners.flink.cluster import FlinkCluster
from runners.flink.errors import ClusterError, FlinkUnavailable, RestError
from runners.flink.processes import ManagedProcess, find_processes, start_process, stop_processes
from runners.flink.rest import FlinkRest
from runners.flink.submission import Submission, program_name, write_worker_script
from runners.tools import TOOLS_VARIABLE, tools_folder

_SLEEP = "import time; time.sleep(600)"


@pytest.fixture(params=["proc", "ps"])
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The two ways to look at processes."""
    if request.param == "ps":
        if shutil.which("ps") is None:
            pytest.skip("no ps")
        monkeypatch.setattr(processes, "_PROC", tmp_path / "none")
    elif not Path("/proc/self").exists():
        pytest.skip("no /proc")


def run_python(tmp_path: Path, code: str, *arguments: str) -> ManagedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return start_process("python", command, output=tmp_path / "out", environment=os.environ)


def wait_until_ready(tmp_path: Path) -> None:
    until = time.monotonic() + 60
    while "ready" not in tmp_path.joinpath("out").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.usefixtures("table")
def test_a_process_is_found_and_ended(tmp_path: Path) -> None:
    mark = f"--mark={tmp_path}"
    process = run_python(tmp_path, f"print('ready', flush=True); {_SLEEP}", mark)
    wait_until_ready(tmp_path)
    assert process.alive()
    assert [each.pid for each in find_processes(mark)] == [process.pid]
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    assert ManagedProcess.model_validate_json(process.model_dump_json()).alive()
    stop_processes([process])
    assert not process.alive()
    assert find_processes(mark) == []


@pytest.mark.usefixtures("table")
def test_a_stranger_with_the_same_id_gets_no_signal(tmp_path: Path) -> None:
    stranger = run_python(tmp_path, _SLEEP)
    earlier = stranger.model_copy(update={"started": "long ago"})
    assert not earlier.alive()
    earlier.kill()
    stop_processes([earlier])
    assert stranger.alive()
    stranger.kill()
    assert not stranger.alive()


def test_who_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); {_SLEEP}"
    process = run_python(tmp_path, code)
    wait_until_ready(tmp_path)
    process.signal(signal.SIGTERM)
    assert process.alive()
    stop_processes([process], seconds=0.2)
    assert not process.alive()


def test_a_process_keeps_no_open_file_of_its_starter(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    process = run_python(tmp_path, _SLEEP)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "", "the other end is closed though the process runs"
    assert process.alive()
    process.kill()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"task_managers": 0}, r"task_managers=0: .*greater than or equal to 1"),
        ({"checkpoint_interval": timedelta(0)}, "checkpoint_interval=.*: .*greater than"),
        ({"rest_port": 70_000}, "rest_port=70000"),
        ({"task_manager_memory_mb": 100}, "task_manager_memory_mb=100"),
        ({"parallelism": 3}, "parallelism 3 needs as many slots, and 1 TaskManagers of 2 have 2"),
    ],
)
def test_settings_are_checked_at_construction(tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ClusterError, match=says):
        FlinkCluster(tmp_path / "flink", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path) -> None:
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other,
        pytest.raises(ClusterError, match=f"port {other.server_port}, for the web UI, is taken"),
    ):
        FlinkCluster(tmp_path, rest_port=other.server_port).up()
    with pytest.raises(ClusterError, match="no cluster was started"):
        FlinkCluster.load(tmp_path)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/usr/bin/python3", "-m", "examples.fraud.stream", "--runner=x"], "stream"),
        (["python", "jobs/card_watch.py", "--input", "in"], "card_watch"),
        (["./watch", "-v"], "watch"),
        (["python", "job.py", "--job_name=night watch"], "night watch"),
        (["python", "job.py", "--job_name", "watch"], "watch"),
    ],
)
def test_a_job_is_called_after_its_program(command: list[str], name: str) -> None:
    assert program_name(command) == name


def test_the_newest_checkpoint_is_the_last_complete_one_of_the_job(tmp_path: Path) -> None:
    cluster = FlinkCluster(tmp_path)
    assert cluster.newest_checkpoint() is None
    for age, (job, number, complete) in enumerate(
        [("b" * 32, 11, False), ("a" * 32, 9, True), ("b" * 32, 10, True), ("b" * 32, 9, True)]
    ):
        folder = tmp_path / "checkpoints" / job / f"chk-{number}"
        folder.mkdir(parents=True)
        if complete:
            folder.joinpath("_metadata").touch()
            os.utime(folder / "_metadata", (1_000_000 - age, 1_000_000 - age))
    first = tmp_path / "checkpoints" / ("a" * 32) / "chk-9"
    assert cluster.newest_checkpoint() == first
    assert cluster.newest_checkpoint("b" * 32) == tmp_path / "checkpoints" / ("b" * 32) / "chk-10"
    assert cluster.newest_checkpoint("c" * 32) is None

    # A job that had none of its own yet.
    submission = Submission(job="c" * 32, name="c-1", program="c", restored=first.as_uri())
    tmp_path.joinpath("submissions.jsonl").write_text(submission.model_dump_json() + "\n")
    assert cluster.newest_checkpoint("c" * 32) == first


def test_workers_get_the_variables_and_the_folder_of_the_program_and_a_log_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, modules = tmp_path / "logs", tmp_path / "user's modules"
    logs.mkdir()
    modules.mkdir()
    python = program(tmp_path / "python", 'echo "$@"; pwd; echo "$KEY"; echo "$TMPDIR"; echo boom >&2; exit 1')
    monkeypatch.setattr(sys, "executable", str(python))
    script = tmp_path / "jobs" / "one" / "worker.sh"
    write_worker_script(
        script,
        cluster=tmp_path,
        logs=logs,
        temporary=tmp_path / "tmp",
        directory=modules,
        environment={"PATH": os.environ["PATH"], "KEY": "it's $secret", "BASH_FUNC_x%%": "() { :; }"},
    )
    assert stat.S_IMODE(script.stat().st_mode) == 0o700
    done = subprocess.run([str(script), "--id=7"], capture_output=True, text=True, env={}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    (log,) = logs.iterdir()
    first, *others = log.read_text().splitlines()
    assert first.split()[0] == "-P"
    assert first.split()[2:] == [f"--beam-agents-cluster={tmp_path}", "--id=7"]
    assert others == [str(modules), "it's $secret", str(tmp_path / "tmp"), "boom"]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tools"
    monkeypatch.setenv(TOOLS_VARIABLE, str(folder))
    return folder


def test_tools_are_kept_where_one_can_write(tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tools_folder() == tools
    monkeypatch.delenv(TOOLS_VARIABLE)
    assert tools_folder() == Path(__file__).resolve().parents[2] / ".tools"
    monkeypatch.setattr("runners.tools._CHECKOUT", tmp_path / "site-packages")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert tools_folder() == tmp_path / "cache" / "beam-agents"


def test_without_maven_it_says_what_to_install(tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "find_java", lambda: Path("/usr/bin/java"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FlinkUnavailable, match="no 'mvn' is on the PATH: install Maven"):
        install.install_job_server()
    assert install.job_server_jar() is None


def test_a_failed_build_says_why_and_leaves_nothing(
    tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program(tmp_path / "bin" / "mvn", "echo 'Could not resolve host repo'; exit 1")
    monkeypatch.setattr(install, "find_java", lambda: Path("/usr/bin/java"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(FlinkUnavailable, match=r"(?s)mvn.*failed with exit code 1.*Could not resolve host repo"):
        install.install_job_server()
    assert [path.name for path in tools.iterdir()] == [".flink-job-server.lock"]


def test_two_at_once_build_once(tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    builds = tmp_path / "builds"
    program(
        tmp_path / "bin" / "mvn",
        f"echo build >> {builds}; sleep 0.5; mkdir target; echo jar > target/flink-job-server.jar",
    )
    program(tmp_path / "bin" / "java", "echo 'openjdk version \"17.0.2\"' >&2")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with get_context("spawn").Pool(2) as pool:
        jars = pool.map(_install, range(2), chunksize=1)
    assert jars[0] == jars[1] == str(install.job_server_jar())
    assert builds.read_text() == "build\n"


def _install(_: int) -> str:
    return str(install.install_job_server())


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'openjdk version \"1.8.0_292\"' >&2", "runs on Java 11 to 17; .* is 8"),
        ("echo 'openjdk version \"21.0.1\"' >&2", "runs on Java 11 to 17; .* is 21"),
        ("echo broken >&2; exit 1", "is no working Java: '-version' said 'broken'"),
    ],
)
def test_java_of_another_version_is_refused(
    script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin" / "java", script)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(FlinkUnavailable, match=says):
        java.find_java()


def test_no_java_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(FlinkUnavailable, match=r"JAVA_HOME, .* has no bin/java: install a JDK"):
        java.find_java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FlinkUnavailable, match="no 'java' is on the PATH: install a JDK"):
        java.find_java()


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def answers() -> Iterator[tuple[FlinkRest, dict[str, Any]]]:
    """A REST client, and what its server says to each path."""
    said: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = said.get(self.path)
            body = json.dumps(answer if answer is not None else {"errors": ["Job not found"]}).encode()
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            said["posted"] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield FlinkRest(f"http://127.0.0.1:{server.server_port}"), said
        server.shutdown()
        thread.join()


def test_what_flink_refuses_is_told_with_its_reason(answers: tuple[FlinkRest, dict[str, Any]]) -> None:
    with pytest.raises(RestError, match=r"GET '.*/jobs/x' was refused with 404: .*Job not found"):
        answers[0].job("x")
    with pytest.raises(RestError, match=r"the JobManager at 'http://127.0.0.1:9' does not answer"):
        FlinkRest("http://127.0.0.1:9/").jobs()


def test_a_savepoint_that_fails_says_why(answers: tuple[FlinkRest, dict[str, Any]], tmp_path: Path) -> None:
    rest, said = answers
    said["/jobs/j/savepoints"] = {"request-id": "t"}
    said["/jobs/j/savepoints/t"] = {
        "status": {"id": "COMPLETED"},
        "operation": {"failure-cause": {"class": "X", "stack-trace": "not all tasks are running"}},
    }
    with pytest.raises(RestError, match="the savepoint of job 'j' failed: not all tasks are running"):
        rest.savepoint("j", tmp_path)
    assert said["posted"] == {"cancel-job": False, "target-directory": tmp_path.as_uri()}
    said["/jobs/j/savepoints/t"] = {"status": {"id": "IN_PROGRESS"}}
    with pytest.raises(RestError, match="the savepoint of job 'j' was not completed within 0 s"):
        rest.savepoint("j", tmp_path, timeout=0)


def test_of_an_exception_the_reasons_are_told(answers: tuple[FlinkRest, dict[str, Any]]) -> None:
    trace = (
        "java.lang.RuntimeException: outer\n\tat org.A.b(A.java:1)\n\tat java.base/c.D.e(Unknown Source)\n"
        'Caused by: Traceback (most recent call last):\n  File "job.py", line 1, in process\nValueError: no\n'
        "\t... 9 more"
    )
    entry = {"exceptionName": "X", "stacktrace": trace, "taskName": "[1]Agent (1/1)"}
    answers[1]["/jobs/j/exceptions"] = {"exceptionHistory": {"entries": [entry]}}
    assert answers[0].exceptions("j") == [
        "[1]Agent (1/1): java.lang.RuntimeException: outer\nCaused by: Traceback (most recent call last):\n"
        '  File "job.py", line 1, in process\nValueError: no'
    ]
    answers[1]["/jobs/j/exceptions"] = {"exceptionHistory": {"entries": []}}
    assert answers[0].exceptions("j") == []
