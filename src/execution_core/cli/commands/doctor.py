"""`doctor`: check a database."""

import argparse
from dataclasses import asdict
from datetime import timedelta

from .. import output
from ..arguments import Commands, add_command, add_json_flag, duration
from ..database import mask_password


def register(commands: Commands) -> None:
    """Add the command."""
    add = add_command(
        commands,
        "doctor",
        run,
        help="check a database and say what to do about each problem",
        description="Check the schema and the settings of a database, and find stuck executions and"
        " gaps in the history. Nothing is changed. The exit code is 1 if there is a problem, and 0"
        " if there are only warnings.",
    )
    add_json_flag(add)
    add(
        "--probe",
        action="store_true",
        help="say instead how the server and this connection behave: pooler, read-only node,"
        " encoding, standby, prepared statements; needs no schema",
    )
    add(
        "--all",
        action="store_true",
        help="check the history of every execution, not only of the live and the newest ones",
    )
    add(
        "--stalled-after",
        type=duration,
        default=timedelta(hours=1),
        metavar="DURATION",
        help="report a running execution without a heartbeat, a due one without a claim and an idle"
        " transaction after this time (default: 1h)",
    )


def run(options: argparse.Namespace) -> int:
    """Print the findings; return 1 if there is a problem."""
    from ... import doctor  # noqa: PLC0415 - imports Alembic, a third of the start-up time

    findings = (
        doctor.probe(options.url)
        if options.probe
        else doctor.examine(
            options.url,
            stalled_after=options.stalled_after,
            whole=options.all,
            schema=options.schema,
        )
    )
    if options.json:
        found = [asdict(finding) for finding in findings]
        output.print_json({"database": mask_password(options.url), "findings": found})
    else:
        for finding in findings:
            print(f"{finding.level:8} {finding.check}: {output.escape(finding.message)}")
            if finding.advice:
                print(f"{'':8} {finding.advice}")
    return int(any(finding.level == "problem" for finding in findings))
