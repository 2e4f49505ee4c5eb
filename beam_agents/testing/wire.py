"""A stretch of network between a ledger and its server, on which tests count, and break things at a chosen moment."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from types import TracebackType

_CHUNK = 65_536


class Wire:
    """Takes TCP connections on a free port of loopback and hands their bytes on to a server; a context manager.

    Args:
        host: The server's.
        port: The server's.

    Attributes:
        port: Where clients connect, on 127.0.0.1.
        round_trips: How often a client spoke and then heard the server.
        bytes: Bytes in both directions.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.round_trips = 0
        self.bytes = 0
        self._lost_request: bytes | None = None
        self._lost_answer: bytes | None = None
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._sockets: set[socket.socket] = set()

    def __enter__(self) -> Wire:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flows.set()
        self.cut()
        for thread in self._threads:
            thread.join()

    def lose_request(self, marker: bytes) -> None:
        """The next client that sends the marker loses its connection, and the server never sees it."""
        self._lost_request = marker

    def lose_answer(self, marker: bytes) -> None:
        """The next client that sends the marker loses its connection as soon as the server has answered."""
        self._lost_answer = marker

    def cut(self) -> None:
        """Breaks all connections."""
        with self._lock:
            for end in self._sockets:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def freeze(self) -> None:
        """Nothing arrives any more, and no connection breaks."""
        self._flows.clear()

    def thaw(self) -> None:
        """What was held up arrives."""
        self._flows.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._carry, args=(client,), daemon=True)
                with self._lock:
                    self._threads.append(thread)
                thread.start()

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            with self._lock:
                self._sockets |= {client, server}
            try:
                self._hand_on(client, server)
            finally:
                with self._lock:
                    self._sockets -= {client, server}

    def _hand_on(self, client: socket.socket, server: socket.socket) -> None:
        heard, losing = True, False
        while True:
            ready, _, _ = select.select([client, server], [], [])
            self._flows.wait()
            for end in ready:
                data = end.recv(_CHUNK)
                if not data or (end is server and losing):
                    return
                if end is client:
                    if self._lost_request is not None and self._lost_request in data:
                        self._lost_request = None
                        return
                    if self._lost_answer is not None and self._lost_answer in data:
                        self._lost_answer, losing = None, True
                    self.round_trips += heard
                heard = end is server
                self.bytes += len(data)
                (server if end is client else client).sendall(data)
