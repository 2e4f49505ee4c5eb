"""A Flink cluster for tests, and what is shown of it when one fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from functools import cache

import pytest

from runners.flink.cluster import FlinkCluster
from runners.flink.errors import ClusterError, FlinkUnavailable
from runners.flink.install import job_server_jar
from runners.flink.java import find_java


@cache
def _missing() -> str | None:
    try:
        find_java()
    except FlinkUnavailable as error:
        return str(error)
    if job_server_jar() is None and shutil.which("mvn") is None:
        return "Beam's job server is built with Maven, and no 'mvn' is on the PATH"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a cluster where there can be none, but not in CI."""
    if item.get_closest_marker("flink") is None:
        return
    missing = _missing()
    if missing is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows why jobs failed and the ends of the logs, for a failed test that has a cluster among its fixtures."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, FlinkCluster):
                try:
                    report.sections.append(("Flink", value.report()))
                except ClusterError as error:
                    report.sections.append(("Flink", str(error)))
    return report


@pytest.fixture(scope="module")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    """A cluster of two TaskManagers with two slots each, for the tests of a module."""
    cluster = FlinkCluster(tmp_path_factory.mktemp("flink"), task_managers=2, slots=2, rest_port=0)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
