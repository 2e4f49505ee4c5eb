"""Ledgers: where runs and their effects are recorded, outside Beam."""

from beam_agents.ledger.base import Ledger, LedgerUnavailable
from beam_agents.ledger.memory import MemoryLedger
from beam_agents.ledger.sqlite import SqliteLedger
from beam_agents.ledger.urls import ledger_from

__all__ = ["Ledger", "LedgerUnavailable", "MemoryLedger", "SqliteLedger", "ledger_from"]
