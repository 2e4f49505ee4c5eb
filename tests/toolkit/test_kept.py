"""Clients of a worker: one for each loop, opened at the first use, closed when nobody uses them."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from beam_agents.toolkit.kept import Kept


class Opening:
    """Counts what is open."""

    opened = 0
    closed = 0
    broken = False


@asynccontextmanager
async def client() -> AsyncIterator[object]:
    if Opening.broken:
        raise ConnectionError("no")
    Opening.opened += 1
    try:
        yield object()
    finally:
        await asyncio.sleep(0)
        Opening.closed += 1


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("opened", 0), ("closed", 0), ("broken", False)):
        monkeypatch.setattr(Opening, name, value)


async def until(done: int) -> None:
    async with asyncio.timeout(10):
        while Opening.closed < done:  # noqa: ASYNC110 - what is tested knows no event of the test
            await asyncio.sleep(0.001)


def test_users_share_one_client_that_closes_when_it_is_idle() -> None:
    async def main() -> None:
        kept = Kept(client, idle_seconds=0.05)
        async with kept.use() as one, kept.use() as two:
            assert one is two
            await asyncio.sleep(0.2)
            assert Opening.closed == 0
        await until(1)
        async with kept.use() as three:
            assert three is not one
        assert Opening.opened == 2

    asyncio.run(main())
    assert Opening.closed == 2  # the loop's end cancels what is left, as a worker's end does


def test_a_broken_client_is_replaced_and_closed_after_its_users() -> None:
    async def main() -> None:
        kept = Kept(client)
        async with kept.use() as one:
            kept.drop(one)
            kept.drop(object())
            async with kept.use() as two:
                assert two is not one
            assert Opening.closed == 0
        await until(1)
        async with kept.use() as again:
            assert again is two

    asyncio.run(main())


def test_a_client_that_cannot_be_opened_is_tried_anew() -> None:
    async def main() -> None:
        kept = Kept(client)
        Opening.broken = True
        for _ in range(2):
            with pytest.raises(ConnectionError, match="no"):
                async with kept.use():
                    raise AssertionError
        Opening.broken = False
        async with kept.use():
            assert Opening.opened == 1

    asyncio.run(main())


def test_it_is_pickled_closed_and_each_loop_has_its_own() -> None:
    kept = Kept(client)

    async def used() -> int:
        async with kept.use():
            again = pickle.loads(pickle.dumps(kept))
            async with again.use():
                return Opening.opened

    assert asyncio.run(used()) == 2
    assert asyncio.run(used()) == 4
    assert Opening.closed == 4


def test_a_user_that_is_cancelled_leaves_the_client_to_the_others() -> None:
    async def use(kept: Kept[object]) -> None:
        async with kept.use():
            await asyncio.sleep(60)

    async def main() -> None:
        kept = Kept(client)
        first = asyncio.create_task(use(kept))
        async with kept.use() as one:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            async with kept.use() as two:
                assert two is one
            assert Opening.closed == 0

    asyncio.run(main())
