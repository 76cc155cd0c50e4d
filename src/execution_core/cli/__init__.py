"""The command line: `execution-core`."""

import os
import sys
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from ..errors import ExecutionNotFound, ExecutionProblem
from . import database
from .parser import parser

DONE, REFUSED, MISUSED, NOT_FOUND = range(4)
INTERRUPTED = 128 + 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done, 1 refused or failed, 2 misused, 3 not found; `run` has codes of its own.
    """
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        if sys.stdout is not None:  # closed: `>&-`
            sys.stdout.flush()
    except ExecutionNotFound as problem:
        return _refused(problem, NOT_FOUND)
    except ExecutionProblem as problem:
        return _refused(problem, REFUSED)
    except DBAPIError as error:
        print(f"execution-core: {database.explained(error, options.url)}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return code


def _refused(problem: ExecutionProblem, code: int) -> int:
    print(f"execution-core: {problem.code}: {problem}", file=sys.stderr)
    return code
