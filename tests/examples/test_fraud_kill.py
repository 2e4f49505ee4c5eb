"""The kill test in its short form; `kill_demo.py` has the long one."""

from pathlib import Path

import pytest
from kill_demo import kill_demos


@pytest.mark.timeout(600)
def test_a_demo_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    trials = kill_demos(tmp_path, kills=3, events=200, bank_delay=0.3)
    assert len(trials) == 3
    assert [trial for trial in trials if not trial.good] == []
    assert any(trial.at.open for trial in trials)
    assert any(trial.at.in_flight for trial in trials)
