"""`python -m examples.support.production`: see `commands.py`."""

import sys

from examples.support.production.commands import main

sys.exit(main())
