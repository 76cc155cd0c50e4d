"""The command line: `execution-core`."""

import argparse
import os
import sys
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from ..core import validation
from ..core.errors import ExecutionNotFound, ExecutionProblem
from ..sql.driver.url import parse_url
from . import database, output
from .parser import build_parser
from .streams import ready_standard_streams

SUCCESS, REFUSED, USAGE_ERROR, NOT_FOUND = range(4)
INTERRUPTED = 128 + 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: `main(["list", "--status", "failed"])`.

    0 success, 1 refused or failed, 2 usage error, 3 not found; `run` has further codes.
    """
    ready_standard_streams()
    try:
        return _run(build_parser().parse_args(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe early, as `head` does
        _discard_output()
        return SUCCESS
    except OSError as error:  # a full disk, a path that is too long
        _discard_output()
        output.warn(f"execution-core: {error}")
        return REFUSED


def _run(options: argparse.Namespace) -> int:
    try:
        parse_url(options.url)  # `explain` needs a valid one
        validation.text("url", options.url, sys.maxsize)  # a lone surrogate cannot be printed
        code: int = options.run(options) or SUCCESS
        sys.stdout.flush()
    except ExecutionProblem as problem:
        output.warn(f"execution-core: {problem.code}: {problem}")
        return NOT_FOUND if isinstance(problem, ExecutionNotFound) else REFUSED
    except SQLAlchemyError as error:
        output.warn(f"execution-core: {database.explain(error, options.url, options.schema)}")
        return REFUSED
    except ValueError as error:  # manual SQL stored February 30, or a number beyond a float
        output.warn(
            f"execution-core: a stored value is invalid: {error}. Correct the row with manual SQL"
        )
        return REFUSED
    return code


def _discard_output() -> None:
    """Redirect stdout to /dev/null so that flushing at exit cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
