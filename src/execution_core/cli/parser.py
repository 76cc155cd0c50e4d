"""The parser: every command registers its arguments and the function that runs it."""

import argparse
from importlib.metadata import version

from .arguments import Parser
from .commands import completion, doctor, maintain, migrate, operate, report, show, stats, watch
from .commands import list as list_command
from .run import command


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    whole = Parser(
        prog="execution-core",
        description="Inspect and operate the executions that an application tracks.",
    )
    whole.add_argument("--version", action="version", version=version("execution-core"))
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    reading = (list_command, show, stats, watch)
    for module in (command, report, *reading, operate, maintain, migrate, doctor, completion):
        module.register(commands)
    return whole
