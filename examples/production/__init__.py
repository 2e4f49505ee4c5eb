"""What the examples in production share: Kafka, PostgreSQL, Flink and programs on this machine, and a command line.

`platform.py` starts servers and the job, and starts again what died; `commands.py` is `up`, `status` and `down`;
`programs.py` is any other program, such as the HTTP door; `topics.py` is how topics are made and read. Of all this your
own platform takes the place.
"""
