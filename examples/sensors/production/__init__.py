"""The sensors as they run in production: changes of a PostgreSQL table, an agent for each kind of device, webhooks.

`job.py` is the pipeline. `agents.py` says what the three agents are told and may look up, `memory.py` what they
remember of a device, `rolling.py` what Beam's windows make of the readings, `plant.py` what stands in the plant's
database, and `duty.py` where alerts go. `servers.py` says what is started on this machine, and `commands.py` is the
command line.
"""
