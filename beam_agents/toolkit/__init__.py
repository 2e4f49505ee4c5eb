"""Tools that are declared and not written: requests to HTTP servers, SQL statements, the tools of MCP servers."""

from beam_agents.toolkit.declared import Reconcile
from beam_agents.toolkit.http import http_tool
from beam_agents.toolkit.mcp import mcp_tools
from beam_agents.toolkit.sql import sql_tool

__all__ = ["Reconcile", "http_tool", "mcp_tools", "sql_tool"]
