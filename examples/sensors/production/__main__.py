"""`python -m examples.sensors.production`: see `commands.py`."""

import sys

from examples.sensors.production.commands import main

sys.exit(main())
