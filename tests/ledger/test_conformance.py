import time
from collections.abc import Callable
from pathlib import Path

import pytest

from beam_agents.ledger import Ledger, MemoryLedger, SqliteLedger
from beam_agents.testing.ledger_conformance import LedgerConformance


class TestMemoryLedger(LedgerConformance):
    transactional = False

    @pytest.fixture
    def make_ledger(self) -> Callable[..., Ledger]:
        made: list[MemoryLedger] = []

        def make(clock: Callable[[], float] = time.time) -> Ledger:
            if not made:
                made.append(MemoryLedger("conformance", clock=clock))
            return made[0]

        return make


class TestSqliteLedger(LedgerConformance):
    @pytest.fixture
    def make_ledger(self, tmp_path: Path) -> Callable[..., Ledger]:
        return lambda clock=time.time: SqliteLedger(tmp_path / "ledger.db", clock=clock)
