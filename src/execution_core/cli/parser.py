"""What can be typed: every command registers its arguments, and the function that it runs."""

import argparse
from importlib.metadata import version
from typing import NoReturn

from .commands import doctor, migrate, operate, report, show, stats, watch
from .commands import list as list_command
from .output import mask_passwords
from .run import command


class Parser(argparse.ArgumentParser):
    """A parser that repeats no password of a URL that stands in the wrong place."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong, and exit."""
        super().error(mask_passwords(message))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    whole = Parser(
        prog="execution-core", description="Operate the executions that a service tracks."
    )
    whole.add_argument("--version", action="version", version=version("execution-core"))
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (command, report, list_command, show, stats, watch, operate, migrate, doctor):
        module.register(commands)
    return whole
