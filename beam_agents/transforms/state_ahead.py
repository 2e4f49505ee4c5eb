"""State of many keys in one go, where Beam's Python worker lets us.

By its interface each read waits for its answer, and each cell that was written waits for its acknowledgement when the
bundle ends: a round trip to the runner every time, some milliseconds while other threads of the worker are busy. The
requests of one bundle go over one stream, which a runner works off in order; so they can be sent together and waited
for together. This is done with the parts of `apache_beam.runners.worker` below the interface, as its own bag state
does. Where they are not what they were in Beam 2.77, or state is cached, or the runner is in the same process, state is
read and written by the interface.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from apache_beam.coders import BytesCoder
from apache_beam.coders.coder_impl import create_InputStream
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker.bundle_processor import SynchronousBagRuntimeState
from apache_beam.runners.worker.sdk_worker import GlobalCachingStateHandler, GrpcStateHandler

_LOOK_SECONDS = 1.0
"""Between two looks at whether the stream to the runner is still there."""


class _Future(Protocol):
    def wait(self, timeout: float | None = None) -> bool: ...
    def get(self, timeout: float | None = None) -> Any: ...


class ReadAhead:
    """The value of a read-modify-write cell of bytes, asked for when this is made and awaited when it is needed.

    Args:
        state: The cell, as a callback was given it.
    """

    def __init__(self, state: Any) -> None:
        self._state = state
        self._stream: Any = None
        self._asked: _Future | None = None
        bag = _bag_of(state)
        if bag is not None and not bag._cleared and not bag._added_elements:
            self._stream = bag._state_handler._underlying
            request = beam_fn_api_pb2.StateRequest(state_key=bag._state_key, get=beam_fn_api_pb2.StateGetRequest())
            self._asked = self._stream._request(request)

    def value(self) -> bytes | None:
        """What the cell held.

        Raises:
            RuntimeError: The runner cannot be asked.
        """
        if self._asked is not None:
            answer = _answer(self._stream, self._asked).get
            if not answer.continuation_token:
                values = create_InputStream(answer.data)
                return _BYTES.decode_from_stream(values, True) if values.size() else None
        value: bytes | None = self._state.read()
        return value


class WriteAhead:
    """What was written to cells, on its way to the runner while the bundle goes on with others. What this does not take
    is written when the bundle ends.
    """

    def __init__(self) -> None:
        self._sent: list[tuple[Any, _Future]] = []

    def send(self, states: Iterable[tuple[Any, bool]]) -> None:
        """Sends what was written, and does not wait.

        Args:
            states: Each cell, and whether it is known to be empty, so that nothing has to be cleared.
        """
        for state, empty in states:
            bag = _bag_of(state)
            if bag is None or not (bag._cleared or bag._added_elements):
                continue
            handler, last = bag._state_handler, None
            if bag._cleared and not empty:
                last = handler.clear(bag._state_key)
            if bag._added_elements:
                last = handler.extend(bag._state_key, bag._value_coder.get_impl(), bag._added_elements)
            bag._cleared, bag._added_elements = False, []
            if last is not None:
                self._sent.append((handler._underlying, last))

    def wait(self) -> None:
        """Waits until the runner has taken all of it.

        Raises:
            RuntimeError: The runner did not take it.
        """
        for stream, last in self._sent:
            _answer(stream, last)
        self._sent = []


_BYTES = BytesCoder().get_impl()


def _bag_of(state: Any) -> Any:
    """The bag below a cell, if it is of the kind that is known here."""
    bag = getattr(state, "_underlying_bag_state", state)
    if type(bag) is not SynchronousBagRuntimeState:
        return None
    handler = bag._state_handler
    if type(handler) is not GlobalCachingStateHandler or type(handler._underlying) is not GrpcStateHandler:
        return None
    return bag if handler._get_cache_token(bag._state_key) is None else None


def _answer(stream: Any, asked: _Future) -> Any:
    while not asked.wait(_LOOK_SECONDS):
        if stream._exception is not None:
            raise stream._exception
        if stream._done:
            raise RuntimeError("the runner has closed the stream for state")
    answer = asked.get()
    if answer.error:
        raise RuntimeError(answer.error)
    return answer
