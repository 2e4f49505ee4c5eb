"""A server between a ledger and its store that fails on purpose."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit


class Fault(Enum):
    """What becomes of a request."""

    LOST_BEFORE = "the connection ends before the store hears of it"
    LOST_AFTER = "the store does it, the connection ends before the answer"
    UNAVAILABLE = 503
    TOO_MANY = 429
    FORBIDDEN = 403
    SLOW = "the answer comes after a second"


class Proxy:
    """Hands requests on to `target`; `fault` is asked about each, by its number from 0, its method and its path."""

    def __init__(self, target: str) -> None:
        self.fault: Callable[[int, str, str], Fault | None] = lambda number, method, path: None
        self.requests = 0
        self.seconds_ahead = 0.0
        self._host = urlsplit(target).netloc
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                proxy._answer(self)

            do_POST = do_DELETE = do_GET

            def handle(self) -> None:
                with suppress(ConnectionError):  # who asked has gone
                    super().handle()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            number = self.requests
            self.requests += 1
        fault = self.fault(number, request.command, request.path)
        if fault is Fault.LOST_BEFORE:
            request.close_connection = True
            return
        if fault is not None and isinstance(fault.value, int):
            self._reply(request, fault.value, [], b'{"error":{"message":"on purpose"}}')
            return
        connection = http.client.HTTPConnection(self._host, timeout=60)
        try:
            connection.request(request.command, request.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if fault is Fault.SLOW:
            time.sleep(1)
        if fault is Fault.LOST_AFTER:
            request.close_connection = True
            return
        kept = [(name, value) for name, value in answer.getheaders() if name.lower().startswith("x-goog")]
        self._reply(request, answer.status, kept, data)

    def _reply(self, request: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        request.send_response_only(status)
        request.send_header("Date", request.date_time_string(time.time() + self.seconds_ahead))
        for name, value in headers:
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)
