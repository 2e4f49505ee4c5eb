"""State of many keys in one go: on a real stream to a runner, and where there is none."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from apache_beam.coders import BytesCoder
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker.bundle_processor import ReadModifyWriteRuntimeState, SynchronousBagRuntimeState
from apache_beam.runners.worker.sdk_worker import GlobalCachingStateHandler, GrpcStateHandler, StateCache

from beam_agents.transforms import state_ahead
from beam_agents.transforms.state_ahead import ReadAhead, WriteAhead


class Runner:
    """Stands at the other end of the stream, and answers when it is told to."""

    def __init__(self) -> None:
        self.bags: dict[bytes, bytes] = {}
        self.handler = GrpcStateHandler(mock.Mock(State=lambda requests: iter(())))
        self.handler._context.process_instruction_id = "bundle"
        self.answered: list[str] = []

    def cell(self, key: bytes) -> ReadModifyWriteRuntimeState:
        state_key = beam_fn_api_pb2.StateKey(
            bag_user_state=beam_fn_api_pb2.StateKey.BagUserState(transform_id="t", user_state_id="s", key=key)
        )
        caching = GlobalCachingStateHandler(StateCache(0), self.handler)
        return ReadModifyWriteRuntimeState(SynchronousBagRuntimeState(caching, state_key, BytesCoder()))

    def waiting(self) -> int:
        return self.handler._requests.qsize()

    def answer(self, error: str = "") -> None:
        while self.waiting():
            request = self.handler._requests.get()
            key = request.state_key.bag_user_state.key
            kind = request.WhichOneof("request")
            self.answered.append(kind)
            response = beam_fn_api_pb2.StateResponse(id=request.id, error=error)
            if kind == "get":
                response.get.data = self.bags.get(key, b"")
            elif kind == "clear":
                self.bags.pop(key, None)
            else:
                self.bags[key] = self.bags.get(key, b"") + request.append.data
            self.handler._responses_by_id.pop(request.id).set(response)


@pytest.fixture
def runner() -> Runner:
    return Runner()


def put(runner: Runner, key: bytes, value: bytes) -> None:
    runner.bags[key] = BytesCoder().encode_nested(value)


def written(states: list[tuple[Any, bool]]) -> None:
    writes = WriteAhead()
    writes.send(states)
    writes.wait()


def test_cells_are_asked_for_before_anybody_waits(runner: Runner) -> None:
    put(runner, b"a", b"of a")
    put(runner, b"c", b"")
    reads = [ReadAhead(runner.cell(key)) for key in (b"a", b"b", b"c")]
    assert runner.waiting() == 3
    runner.answer()
    assert [read.value() for read in reads] == [b"of a", None, b""]


def test_cells_are_written_before_anybody_waits(runner: Runner) -> None:
    put(runner, b"a", b"old")
    cells = {key: runner.cell(key) for key in (b"a", b"b", b"c", b"d")}
    put(runner, b"c", b"kept")
    cells[b"a"].write(b"new")
    cells[b"b"].write(b"first")
    cells[b"d"].clear()
    with mock.patch.object(state_ahead, "_answer", lambda stream, asked: runner.answer() or asked.get()):
        writes = WriteAhead()
        writes.send((cell, key == b"b") for key, cell in cells.items())
        assert not runner.answered
        writes.wait()
    assert runner.bags == {b"a": b"\x03new", b"b": b"\x05first", b"c": b"\x04kept"}
    assert runner.answered == ["clear", "append", "append", "clear"]
    for cell in cells.values():  # nothing is left for the end of the bundle
        cell.commit()
    assert not runner.waiting()


def test_what_was_written_in_the_bundle_is_read_from_there(runner: Runner) -> None:
    cell = runner.cell(b"a")
    cell.write(b"here")
    assert ReadAhead(cell).value() == b"here"
    assert not runner.waiting()


def test_a_runner_that_refuses_fails_the_bundle(runner: Runner) -> None:
    read = ReadAhead(runner.cell(b"a"))
    runner.answer(error="no such bundle")
    with pytest.raises(RuntimeError, match="no such bundle"):
        read.value()
    cell = runner.cell(b"b")
    cell.write(b"x")
    refuse = mock.patch.object(state_ahead, "_bag_of", side_effect=state_ahead._bag_of)
    with refuse, mock.patch.object(runner.handler, "_requests") as requests:
        requests.put = lambda request: runner.handler._responses_by_id.pop(request.id).set(
            beam_fn_api_pb2.StateResponse(id=request.id, error="the lock is lost")
        )
        with pytest.raises(RuntimeError, match="the lock is lost"):
            written([(cell, False)])


def test_a_stream_that_has_ended_does_not_hang(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_ahead, "_LOOK_SECONDS", 0.01)
    read = ReadAhead(runner.cell(b"a"))
    runner.handler._exception = ConnectionError("reset")
    with pytest.raises(ConnectionError, match="reset"):
        read.value()
    runner.handler._exception = None
    runner.handler._done = True
    with pytest.raises(RuntimeError, match="closed the stream"):
        read.value()


def test_a_long_value_that_comes_in_parts_is_read_by_the_interface() -> None:
    parts: dict[bytes, Any] = {
        b"": beam_fn_api_pb2.StateResponse(id="1"),
    }
    runner = Runner()
    cell = runner.cell(b"a")
    read = ReadAhead(cell)
    request = runner.handler._requests.get()
    parts[b""].get.continuation_token = b"more"
    runner.handler._responses_by_id.pop(request.id).set(parts[b""])
    with mock.patch.object(cell, "read", return_value=b"all of it"):
        assert read.value() == b"all of it"


class OfAnotherRunner:
    def __init__(self) -> None:
        self.value: bytes | None = b"plain"

    def read(self) -> bytes | None:
        return self.value


def test_other_state_is_used_by_its_interface() -> None:
    cell = OfAnotherRunner()
    assert ReadAhead(cell).value() == b"plain"
    written([(cell, False)])
    cell.value = None
    assert ReadAhead(cell).value() is None


def test_cached_state_is_used_by_its_interface() -> None:
    runner = Runner()
    cell = runner.cell(b"a")
    caching = cell._underlying_bag_state._state_handler
    caching._state_cache = StateCache(1 << 20)
    caching._context.user_state_cache_token = b"token"
    read = ReadAhead(cell)
    assert not runner.waiting()
    with mock.patch.object(cell, "read", return_value=b"cached"):
        assert read.value() == b"cached"
