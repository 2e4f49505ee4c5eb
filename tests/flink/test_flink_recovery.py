"""One job on a real cluster goes through every kind of kill, under load: nothing is lost, nothing is done twice.

The long form, with many kills of each kind and figures, is `python -m tests.flink.kill_cluster`.
"""

from __future__ import annotations

import pytest

from tests.flink.kill_cluster import DRAIN_SECONDS, cluster_in, kill_once, start
from tests.flink.load_run import loading
from tests.flink.load_target import KINDS, target_on

pytestmark = pytest.mark.flink


@pytest.mark.timeout(900)
def test_nothing_is_lost_or_done_twice_whatever_is_killed(tmp_path):
    with (
        cluster_in(tmp_path / "cluster") as cluster,
        loading(tmp_path / "load", rate=6, keys=50, seed=1, ledger=True) as run,
        target_on(cluster, run.job, parallelism=2, seed=1) as target,
    ):
        start(run, target)
        kills = [kill_once(run, target, kind) for kind in KINDS]
        found = run.finish(seconds=DRAIN_SECONDS, watch=target.watch)
        told = f"{found!r}\n{kills!r}"

        assert all(kill.driven > 0 for kill in kills), told
        assert found.wrong() == {}, f"{told}\n{target.report()}"
        assert found.results == found.events
