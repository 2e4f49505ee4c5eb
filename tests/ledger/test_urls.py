from pathlib import Path

import pytest

from beam_agents.errors import ConfigurationError
from beam_agents.ledger import MemoryLedger, SqliteLedger, ledger_from


def test_sqlite_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative, absolute = ledger_from("sqlite:///fraud.db"), ledger_from(f"sqlite:///{tmp_path}/fraud.db")
    assert type(relative) is type(absolute) is SqliteLedger
    assert relative.url == absolute.url == f"sqlite:///{tmp_path}/fraud.db"
    assert ledger_from(absolute.url).url == absolute.url
    assert not (tmp_path / "fraud.db").exists()


def test_memory_urls() -> None:
    assert ledger_from("memory:shared").url == ledger_from("memory:shared").url == "memory:shared"
    own = ledger_from("memory:")
    assert type(own) is MemoryLedger
    assert own.url != ledger_from("memory:").url
    assert ledger_from(own.url).url == own.url


def test_a_ledger_is_returned_as_it_is() -> None:
    ledger = MemoryLedger()
    assert ledger_from(ledger) is ledger


@pytest.mark.parametrize(
    "url",
    [
        "",
        "fraud.db",
        "sqlite:fraud.db",
        "sqlite://fraud.db",
        "sqlite:///",
        "mysql://host/db",
        "s3://bucket/prefix",
        7,
        None,
    ],
)
def test_other_urls_are_refused_with_the_known_forms(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        ledger_from(url)
    assert repr(url) in str(refused.value)
    assert "sqlite:///relative.db" in str(refused.value)


def test_sqlite_memory_and_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="use 'memory:'"):
        ledger_from("sqlite:///:memory:")
    with pytest.raises(ConfigurationError, match="has no options"):
        ledger_from("sqlite:///fraud.db?mode=ro")
