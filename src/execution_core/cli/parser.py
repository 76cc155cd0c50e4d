"""What can be typed: every command registers its arguments, and the function that it runs."""

import argparse
from importlib.metadata import version

from . import doctor, inside, listing, migrate, moving, run, showing, stats, watch


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    whole = argparse.ArgumentParser(
        prog="execution-core", description="Operate the executions that a service tracks."
    )
    whole.add_argument("--version", action="version", version=version("execution-core"))
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (run, inside, listing, showing, stats, watch, moving, migrate, doctor):
        module.register(commands)
    return whole
