"""The commands for many executions: `sweep` and `prune`."""

import argparse
from typing import Final

from ...core.models import ExecutionStatus
from ...core.selections import check_prune_request
from ...core.state_machine import FINISHED
from .. import output, queries
from ..arguments import Commands, add_choices, add_command, duration
from ..database import open_database

BATCH: Final = 1_000


def register(commands: Commands) -> None:
    """Add the commands."""
    add = add_command(
        commands,
        "sweep",
        sweep,
        help="time out running executions that are overdue or stalled",
        description="Time out every running execution that is past its deadline or, with"
        " --stalled-after, has sent no heartbeat for that time. With --retry, allow another attempt"
        " of each that has attempts left.",
    )
    add(
        "--stalled-after",
        metavar="TIME",
        type=duration,
        help="also time out executions without a heartbeat for TIME, e.g. 10m",
    )
    add("--type", help="only executions of this type")
    add("--retry", action="store_true", help="allow another attempt if attempts are left")
    add = add_command(
        commands,
        "prune",
        prune,
        help="delete old finished executions",
        description="Delete executions that finished long ago, with their history and log, oldest"
        f" first, in batches of {BATCH:,}. Live executions and their ancestors are never deleted."
        " This cannot be undone.",
    )
    add(
        "--older-than",
        metavar="AGE",
        type=duration,
        required=True,
        help="finished more than AGE ago, e.g. 30d",
    )
    add(
        "--keys-older-than",
        metavar="AGE",
        type=duration,
        help="the same for executions with an idempotency key, which prevent a second run under the"
        " key (default: as --older-than)",
    )
    add_choices(add, "--status", FINISHED, "only executions with this status")
    add("--type", help="only executions of this type")
    add("--dry-run", action="store_true", help="only say how many would be deleted")


def sweep(options: argparse.Namespace) -> None:
    """Sweep in batches until no execution is left to time out."""
    swept = retried = 0
    size = BATCH
    with open_database(options.url, options.schema) as database:
        while size == BATCH:
            batch = database.manager.sweep(
                stalled_after=options.stalled_after,
                type=options.type,
                retry=options.retry,
                limit=BATCH,
            )
            for each in batch:
                print(f"{each.id} {each.status}")
            size = len(batch)
            swept += size
            retried += sum(each.status is ExecutionStatus.RETRYING for each in batch)
    tell = output.warn if swept else output.note
    tell(f"{swept} timed out" + (f", {retried} of them to be retried" if retried else ""))


def prune(options: argparse.Namespace) -> None:
    """Prune in batches until no execution is left to delete."""
    statuses = options.status or None
    arguments = options.older_than, statuses, options.type, options.keys_older_than
    if options.dry_run:
        request = check_prune_request(*arguments, limit=BATCH)
        with (
            open_database(options.url, options.schema) as database,
            database.reader.connect() as connection,
        ):
            print(f"{queries.count_prunable(connection, request)} would be deleted")
        return
    pruned, size = 0, BATCH
    with open_database(options.url, options.schema) as database:
        while size == BATCH:
            size = database.manager.prune(
                options.older_than,
                status=statuses,
                type=options.type,
                keys_older_than=options.keys_older_than,
                limit=BATCH,
            )
            pruned += size
    if pruned:
        print(f"{pruned} deleted")
    else:
        output.note("0 deleted")
