"""Tools that are declared and not written: requests to HTTP servers, SQL statements, the tools of MCP servers,
events to other jobs and their answers.
"""

from beam_agents.toolkit.declared import Reconcile
from beam_agents.toolkit.http import http_tool
from beam_agents.toolkit.kafka import publish, request
from beam_agents.toolkit.kafka_event import Published
from beam_agents.toolkit.mcp import mcp_tools
from beam_agents.toolkit.sql import sql_tool

__all__ = ["Published", "Reconcile", "http_tool", "mcp_tools", "publish", "request", "sql_tool"]
