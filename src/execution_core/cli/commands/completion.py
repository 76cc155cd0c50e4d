"""`completion`: let a shell complete the commands and options of `execution-core`."""

import argparse

from ...core.errors import InvalidValue
from ...sql.driver.url import DEFAULT_URL
from ..arguments import Commands

EPILOG = """\
bash, for this user:
    execution-core completion bash > ~/.local/share/bash-completion/completions/execution-core
zsh, in a folder of $fpath:
    execution-core completion zsh > ~/.zfunc/_execution-core
"""


def register(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "completion",
        help="print a script that completes commands and options in a shell",
        description="Print a script with which a shell completes commands and options.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
    # No database is used.
    command.set_defaults(run=run, url=DEFAULT_URL, schema=None)


def run(options: argparse.Namespace) -> None:
    """Print the script."""
    from ..parser import build_parser  # noqa: PLC0415 - it registers this module

    try:
        import shtab  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError:
        raise InvalidValue("shell", "needs shtab: pip install 'execution-core[cli]'") from None
    print(shtab.complete(build_parser(), options.shell))
