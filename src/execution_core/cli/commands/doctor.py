"""`doctor`: whether a database is as it should be."""

import argparse
from dataclasses import asdict
from datetime import timedelta

from .. import output
from ..arguments import Commands, add_json_flag, add_url, duration
from ..database import mask_password


def register(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "doctor",
        help="say what is wrong with a database, and what to do",
        description="Look at a database: its schema, its settings, executions that are stuck, and"
        " gaps in their history. Nothing is changed. The exit code is 1 when there is a problem;"
        " warnings alone leave it at 0.",
    )
    add_url(command)
    add_json_flag(command)
    command.add_argument(
        "--all",
        action="store_true",
        help="read the history of every execution, not only of the live and the newest ones",
    )
    command.add_argument(
        "--stalled-after",
        type=duration,
        default=timedelta(hours=1),
        metavar="DURATION",
        help="how long a worker may be silent, what is due unclaimed, a transaction idle"
        " (default: 1h)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what was found, and refuse where there is a problem."""
    from ... import doctor  # noqa: PLC0415 - brings Alembic, a third of the time that a start takes

    findings = doctor.examine(options.url, stalled_after=options.stalled_after, whole=options.all)
    if options.json:
        found = [asdict(finding) for finding in findings]
        output.print_json({"database": mask_password(options.url), "findings": found})
    else:
        for finding in findings:
            print(f"{finding.level:8} {finding.check}: {output.escape(finding.message)}")
            if finding.advice:
                print(f"{'':8} {finding.advice}")
    return int(any(finding.level == "problem" for finding in findings))
