"""`python -m examples.support`: everything that workers import stands in other modules, never in `__main__`."""

from examples.support.main import main

main()
