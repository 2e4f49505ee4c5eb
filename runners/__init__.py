"""What it takes to run the agents on each runner: binaries, servers and the pipeline options that go with them."""
