"""`python -m examples.fraud.production`: see `commands.py`."""

import sys

from examples.fraud.production.commands import main

sys.exit(main())
