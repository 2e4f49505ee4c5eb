"""An MCP server for tests: `python mcp_shop.py` speaks over stdio, `python mcp_shop.py http PORT` prints its port."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent
from pydantic import BaseModel

server = MCPServer("shop", log_level="ERROR")
NOTES = Path(os.environ.get("SHOP_NOTES", os.devnull))


class Item(BaseModel):
    name: str
    price: float


@server.tool()
def search(query: str, limit: int = 5) -> list[Item]:
    """Looks for things."""
    return [Item(name=f"{query} {number}", price=number) for number in range(limit)]


@server.tool(structured_output=False)
def greet(name: str) -> str:
    """Says hello."""
    return f"Hello {name}"


@server.tool()
def order(ctx: Context, item: str) -> str:
    """Orders something."""
    meta: Any = ctx.request_context.meta or {}
    with NOTES.open("a", encoding="utf-8") as notes:
        notes.write(f"{item} {meta.get('beam-agents/idempotency-key')}\n")
    if item == "nothing":
        raise ToolError("sold out")
    if item == "death":
        os._exit(3)
    return "ordered"


@server.tool()
def die(once_in: str) -> str:
    """Ends the server, once."""
    if not Path(once_in).exists():
        Path(once_in).touch()
        os._exit(3)
    return f"alive, process {os.getpid()}"


@server.tool()
def token(kind: str) -> str:
    """Says the secret that it was given."""
    said = os.environ.get("SHOP_TOKEN", "")
    if kind == "error":
        raise ToolError(f"bad {said}")
    return f"it is {said}"


@server.tool(structured_output=False)
def picture() -> list[Any]:
    """Shows something."""
    return ["a picture", ImageContent(type="image", data="aGk=", mime_type="image/png")]


if os.environ.get("SHOP_NEW"):
    changed = Path(os.environ["SHOP_NEW"])
    if changed.exists():

        @server.tool()
        def versioned(new: int) -> str:
            """The new form."""
            return "new"
    else:

        @server.tool()
        def versioned(old: int) -> str:  # type: ignore[misc]
            """The old form."""
            return "old"


if __name__ == "__main__":
    if sys.argv[1:2] == ["http"]:
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", int(sys.argv[2])))
        held.listen()
        print(held.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="error")).run(sockets=[held])
    else:
        server.run()
