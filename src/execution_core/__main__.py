"""Run the command line: `python -m execution_core` is the same as `execution-core`."""

import sys

from .cli import main

sys.exit(main())
