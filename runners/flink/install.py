"""Gets what a Flink cluster is made of: Flink from PyPI, Beam's job server for it from Maven Central."""

from __future__ import annotations

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
from runners.tools import ToolUnavailable, alone, find_maven, move, run, scratch, tools_folder

FLINK_VERSION = "1.19.3"

_PACKAGE = "apache-flink-libraries"
# The rest is for SQL and for PyFlink.
_PARTS = ("lib", "plugins", "bin", "licenses")


@contextmanager
def _for_flink() -> Iterator[None]:
    """What is missing, is missing for Flink."""
    try:
        yield
    except ToolUnavailable as error:
        raise FlinkUnavailable(str(error)) from error


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


@_for_flink()
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
    with alone("flink"):
        home = flink_home()
        if home is not None:
            return home
        home = _own_home()
        with scratch(home) as folder:
            requirement = f"{_PACKAGE}=={FLINK_VERSION}"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            run([*command, "--dest", str(folder / "download"), requirement], folder=folder)
            (archive,) = (folder / "download").glob("*.tar.gz")
            _unpack(archive, folder / "flink")
            archive.unlink()
            return move(folder / "flink", home)


@_for_flink()
def install_job_server() -> Path:
    """The jar of Beam's job server for Flink, built with Maven first if it is not there (a minute or two, 160 MB).

    Several processes may call this at once: one builds, the others wait.

    Raises:
        FlinkUnavailable: There is no Java or no Maven, or Maven could not fetch the parts.
    """
    jar = _own_jar()
    if jar.is_file():
        return jar
    with alone("flink-job-server"):
        if jar.is_file():
            return jar
        java = find_java()
        maven = find_maven()
        with scratch(jar.parent) as folder:
            folder.joinpath("pom.xml").write_bytes(_pom())
            run([maven, "--quiet", "--batch-mode", "-DskipTests", "package"], folder=folder, java=java)
            built = folder / "made"
            built.mkdir()
            folder.joinpath("target", jar.name).replace(built / jar.name)
            return move(built, jar.parent) / jar.name


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
