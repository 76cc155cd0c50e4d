"""The command line: `execution-core`."""

import os
import sys
from collections.abc import Sequence

from .streams import ready_standard_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: `main(["list", "--status", "failed"])`.

    0 success, 1 refused or failed, 2 usage error, 3 not found; `run` has further codes.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    ready_standard_streams()
    if words[:1] == ["run"] and os.getpid() == 1:
        from .run.init_process import become_init  # noqa: PLC0415 - needs POSIX

        become_init()
    # Each imports only what it needs: the program takes ten times as long to start.
    from .report_client import report_to_run  # noqa: PLC0415

    code = report_to_run(words)
    if code is not None:
        return code
    from .program import run_program  # noqa: PLC0415

    return run_program(words)
