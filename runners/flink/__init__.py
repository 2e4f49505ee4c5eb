"""A real Flink cluster on one machine: what it is made of, its processes, its jobs and their Python workers."""
