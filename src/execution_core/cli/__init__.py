"""The command line: `execution-core`."""

import argparse
import os
import sys
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from ..core.errors import ExecutionNotFound, ExecutionProblem
from . import database, output
from .parser import parser
from .streams import ready_standard_streams

DONE, REFUSED, MISUSED, NOT_FOUND = range(4)
INTERRUPTED = 128 + 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done, 1 refused or failed, 2 misused, 3 not found; `run` has codes of its own.
    """
    ready_standard_streams()
    try:
        return _run(parser().parse_args(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        _write_no_more()
        return DONE
    except OSError as error:  # a full disk, a path that is too long
        _write_no_more()
        output.warn(f"execution-core: {error}")
        return REFUSED


def _run(options: argparse.Namespace) -> int:
    try:
        database.check_url(options.url)
        code: int = options.run(options)
        sys.stdout.flush()
    except ExecutionNotFound as problem:
        return _refused(problem, NOT_FOUND)
    except ExecutionProblem as problem:
        return _refused(problem, REFUSED)
    except DBAPIError as error:
        output.warn(f"execution-core: {database.explain(error, options.url)}")
        return REFUSED
    except ValueError as error:  # written by hand: the 30th of February, a number without end
        output.warn(f"execution-core: this cannot be read: {error}")
        return REFUSED
    return code


def _refused(problem: ExecutionProblem, code: int) -> int:
    output.warn(f"execution-core: {problem.code}: {problem}")
    return code


def _write_no_more() -> None:
    """Let what is still to be written go nowhere, lest Python fail over it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
