"""The whole program: parse the command line, run the command, and explain what went wrong."""

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from ..core import validation
from ..sql.driver.url import parse_url
from .arguments import UsageError
from .database import EXPLAINED, explain_failure
from .output import warn
from .parser import build_parser

SUCCESS, REFUSED, USAGE_ERROR = range(3)
INTERRUPTED = 128 + 2


def run_program(words: Sequence[str]) -> int:
    """Run one command and return the exit code of the program."""
    logging.basicConfig(format="execution-core: %(message)s")
    try:
        return _run(build_parser().parse_args(words))
    except UsageError as error:
        warn(str(error))
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe early, as `head` does
        _discard_output()
        return SUCCESS
    except OSError as error:  # a full disk, a path that is too long
        _discard_output()
        warn(f"execution-core: {error}")
        return REFUSED


def _run(options: Namespace) -> int:
    try:
        parse_url(options.url)  # `explain_failure` needs a valid one
        validation.text("url", options.url, sys.maxsize)  # a lone surrogate cannot be printed
        code: int = options.run(options) or SUCCESS
        sys.stdout.flush()
    except EXPLAINED as error:
        code, message = explain_failure(error, options.url, options.schema)
        warn(message)
    return code


def _discard_output() -> None:
    """Redirect stdout to /dev/null so that flushing at exit cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
