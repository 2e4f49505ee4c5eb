"""`python -m examples.fraud`: everything that workers import stands in other modules, never in `__main__`."""

from examples.fraud.main import main

main()
