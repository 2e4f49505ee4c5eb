"""How exactly sleeps and limits of time are kept while calls are in flight: `python -m benchmarks.timers`."""
