"""`python -m wane.launch` is `wane`, where no console script is installed."""

import sys

from wane.launch.cli import main

sys.exit(main())
