"""What the tests of the Google Cloud Storage ledger share: a server, and ledgers on it."""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("google.auth")

from gcs_proxy import Proxy

from beam_agents.ledger.gcs import GcsLedger
from beam_agents.testing.ledger_store import FakeClock, Store
from runners.fake_gcs import FakeGcs, fake_gcs_path

needs_server = pytest.mark.skipif(fake_gcs_path() is None, reason="needs the server of 'python -m runners.fake_gcs'")


@pytest.fixture(scope="module")
def server() -> Iterator[FakeGcs]:
    memory = "/dev/shm"  # the server has each object written through to the disk
    folder = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder) as made, FakeGcs(Path(made)) as server:
        yield server


@pytest.fixture
def proxy(server: FakeGcs) -> Iterator[Proxy]:
    with Proxy(server.address) as proxy:
        yield proxy


@pytest.fixture
def url(server: FakeGcs) -> str:
    return new_url(server)


def new_url(server: FakeGcs) -> str:
    """A ledger in a bucket of its own: the server's listings look at all objects of a bucket."""
    bucket = uuid.uuid4().hex
    server.make_bucket(bucket)
    return f"gs://{bucket}/ledger"


@pytest.fixture
def store(server: FakeGcs, url: str) -> Iterator[Store]:
    clock = FakeClock()
    with closing(opened(url, server.address, clock)) as ledger:
        yield Store(ledger, clock)


def opened(url: str, address: str, clock: Callable[[], float] | None = None, timeout: float = 10.0) -> GcsLedger:
    ledger = GcsLedger(url, clock=clock, emulator=address, timeout=timeout)
    ledger.open()
    return ledger


def folder_of(server: FakeGcs, url: str) -> Path:
    _, _, bucket, prefix = url.split("/")
    return server.bucket(bucket) / prefix


def names_in(folder: Path) -> list[str]:
    """The objects of a kind, waiting for nothing."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
