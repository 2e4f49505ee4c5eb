"""Gets what a Flink cluster is made of: Flink from PyPI, Beam's job server for it from Maven Central.

Both are kept below one folder: `.tools` of a checkout, else `~/.cache/beam-agents`, or what the environment variable
BEAM_AGENTS_TOOLS names.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path

from runners.flink.errors import FlinkUnavailable
from runners.flink.java import find_java

FLINK_VERSION = "1.19.3"
TOOLS_VARIABLE = "BEAM_AGENTS_TOOLS"

_PACKAGE = "apache-flink-libraries"
# The rest is for SQL and for PyFlink.
_PARTS = ("lib", "plugins", "bin", "licenses")
_CHECKOUT = Path(__file__).resolve().parents[2]
_ERROR_TAIL = 3_000


def tools_folder() -> Path:
    """Where downloaded tools are kept."""
    named = os.environ.get(TOOLS_VARIABLE)
    if named:
        return Path(named).expanduser().resolve()
    if _CHECKOUT.joinpath("pyproject.toml").is_file():
        return _CHECKOUT / ".tools"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "beam-agents"


def flink_home() -> Path | None:
    """The folder with Flink's `lib` and `bin`, or `None` when `install_flink` was not run yet."""
    for home in (_packaged_home(), _own_home()):
        if home is not None and home.joinpath("lib", f"flink-dist-{FLINK_VERSION}.jar").is_file():
            return home
    return None


def job_server_jar() -> Path | None:
    """The job server's jar, or `None` when `install_job_server` was not run yet."""
    jar = _own_jar()
    return jar if jar.is_file() else None


def install_flink() -> Path:
    """The folder with Flink's `lib` and `bin`, downloaded first if it is not there (230 MB).

    An installed `apache-flink-libraries` of the right version is used as it is. Several processes may call this at
    once: one downloads, the others wait.

    Raises:
        FlinkUnavailable: It could not be downloaded.
    """
    home = flink_home()
    if home is not None:
        return home
    with _alone("flink"):
        home = flink_home()
        if home is not None:
            return home
        home = _own_home()
        with _scratch(home) as scratch:
            requirement = f"{_PACKAGE}=={FLINK_VERSION}"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            _run([*command, "--dest", str(scratch / "download"), requirement], folder=scratch)
            (archive,) = (scratch / "download").glob("*.tar.gz")
            _unpack(archive, scratch / "flink")
            archive.unlink()
            return _move(scratch / "flink", home)


def install_job_server() -> Path:
    """The jar of Beam's job server for Flink, built with Maven first if it is not there (a minute or two, 160 MB).

    Several processes may call this at once: one builds, the others wait.

    Raises:
        FlinkUnavailable: There is no Java or no Maven, or Maven could not fetch the parts.
    """
    jar = _own_jar()
    if jar.is_file():
        return jar
    with _alone("flink-job-server"):
        if jar.is_file():
            return jar
        java = find_java()
        maven = shutil.which("mvn")
        if maven is None:
            raise FlinkUnavailable(
                "The job server is built with Maven and no 'mvn' is on the PATH: install Maven 3.6 or newer "
                "(https://maven.apache.org/install.html)"
            )
        with _scratch(jar.parent) as scratch:
            scratch.joinpath("pom.xml").write_bytes(_pom())
            _run([maven, "--quiet", "--batch-mode", "-DskipTests", "package"], folder=scratch, java=java)
            built = scratch / "made"
            built.mkdir()
            scratch.joinpath("target", jar.name).replace(built / jar.name)
            return _move(built, jar.parent) / jar.name


def _own_home() -> Path:
    return tools_folder() / f"flink-{FLINK_VERSION}"


def _own_jar() -> Path:
    # Named by what it is built from, so that a change of versions is a new build.
    return tools_folder() / f"flink-job-server-{sha256(_pom()).hexdigest()[:12]}" / "flink-job-server.jar"


def _packaged_home() -> Path | None:
    try:
        package = distribution(_PACKAGE)
    except PackageNotFoundError:
        return None
    if package.version != FLINK_VERSION:
        return None
    return Path(str(package.locate_file("pyflink")))


def _pom() -> bytes:
    return files(__package__).joinpath("pom.xml").read_bytes()


def _unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as packed:
        for member in packed:
            path = Path(member.name)
            if path.parts[1:2] == ("deps",) and path.parts[2:3] and path.parts[2] in _PARTS:
                member.name = str(Path(*path.parts[2:]))
                packed.extract(member, target, filter="data")


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Keeps other processes out. The lock ends with its process, however that ends."""
    folder = tools_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f".{name}.lock").open("w")
    except OSError as error:
        raise FlinkUnavailable(
            f"Nothing can be written to {str(folder)!r} ({error}): let {TOOLS_VARIABLE} name another folder"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside `target`, of which nothing stays. What a killed installation left is removed first."""
    scratch = target.with_name(f".{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(made: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return made.replace(target)


def _run(command: list[str], *, folder: Path, java: Path | None = None) -> None:
    environment = dict(os.environ)
    if java is not None:
        environment.setdefault("JAVA_HOME", str(java.resolve().parents[1]))
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise FlinkUnavailable(
            f"{' '.join(command)!r} failed with exit code {done.returncode}:\n{done.stdout[-_ERROR_TAIL:].strip()}"
        )
