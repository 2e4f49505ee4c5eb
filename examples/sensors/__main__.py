"""`python -m examples.sensors`: everything that workers import stands in other modules, never in `__main__`."""

from examples.sensors.main import main

main()
