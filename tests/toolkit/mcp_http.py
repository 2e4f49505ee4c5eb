"""The MCP server of the tests on HTTP, to be stopped and started on the same port."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SHOP = str(Path(__file__).with_name("mcp_shop.py"))


class HttpShop:
    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/mcp"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, SHOP, "http", str(self._port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> HttpShop:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
