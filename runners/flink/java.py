"""The Java that Flink runs on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from runners.flink.errors import FlinkUnavailable

_OLDEST = 11
_NEWEST = 17

_EXPORTS = (
    "java.base/sun.net.util",
    "java.rmi/sun.rmi.registry",
    "jdk.compiler/com.sun.tools.javac.api",
    "jdk.compiler/com.sun.tools.javac.file",
    "jdk.compiler/com.sun.tools.javac.parser",
    "jdk.compiler/com.sun.tools.javac.tree",
    "jdk.compiler/com.sun.tools.javac.util",
    "java.security.jgss/sun.security.krb5",
)
_OPENS = (
    "java.base/java.lang",
    "java.base/java.net",
    "java.base/java.io",
    "java.base/java.nio",
    "java.base/sun.nio.ch",
    "java.base/java.lang.reflect",
    "java.base/java.text",
    "java.base/java.time",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/java.util.concurrent.locks",
)
MODULE_OPTIONS = tuple(
    f"--add-{kind}={package}=ALL-UNNAMED"
    for kind, packages in (("exports", _EXPORTS), ("opens", _OPENS))
    for package in packages
)
"""What Flink's own scripts pass to every JVM."""


def find_java() -> Path:
    """The `java` of JAVA_HOME, or the one on the PATH.

    Raises:
        FlinkUnavailable: There is none, or Flink does not run on its version.
    """
    home = os.environ.get("JAVA_HOME")
    found = str(Path(home, "bin", "java")) if home else shutil.which("java")
    if found is None or not os.access(found, os.X_OK):
        where = f"JAVA_HOME, {home!r}, has no bin/java" if home else "no 'java' is on the PATH"
        raise FlinkUnavailable(f"Flink needs Java {_OLDEST} to {_NEWEST}, and {where}: install a JDK, for example 17")
    version = _version(found)
    if not _OLDEST <= version <= _NEWEST:
        raise FlinkUnavailable(
            f"Flink 1.19 runs on Java {_OLDEST} to {_NEWEST}; {found!r} is {version}: let JAVA_HOME name another"
        )
    return Path(found)


@cache
def _version(java: str) -> int:
    done = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    said = (done.stderr + done.stdout).strip()
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    if done.returncode != 0 or match is None:
        raise FlinkUnavailable(f"{java!r} is no working Java: '-version' said {said!r}")
    return int(match[1])
