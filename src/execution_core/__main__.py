"""`python -m execution_core` is `execution-core`."""

import sys

from .cli import main

sys.exit(main())
