"""The support agent as it runs in production: messages by HTTP, a conversation for each ticket, on Flink.

`events.py`, `agent.py` and `crm.py` are what a help desk would write: what comes in, what becomes of it, and the tables
that the agent reads and writes. `job.py` is the pipeline; `beam-agents ingress` is the door. `servers.py` says
what is started on this machine, and `commands.py` is the command line.
"""
