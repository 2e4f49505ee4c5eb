"""The fraud agent as it runs in production: Kafka to Kafka on Flink, with the bank and the ledger in PostgreSQL.

`job.py` is the pipeline, and all that a bank with its own servers would need of this package, beside `tools.py` (what
the model may do), `bank.py` (the bank's tables) and `topics.py` (what stands in the topics). `servers.py` says
what is started on this machine, and `commands.py` is the command line.
"""
