"""The commands that change executions: `cancel`, `retry`, `replay`, `sweep` and `prune`."""

import argparse
from typing import Final

from ...core.models import Execution, ExecutionStatus
from ...core.state_machine import FINISHED
from .. import output
from ..arguments import Commands, add_choices, add_command, add_id, duration, json_value
from ..database import open_database

BATCH: Final = 1_000


def register(commands: Commands) -> None:
    """Add the commands."""
    add = add_command(
        commands,
        "cancel",
        cancel,
        help="cancel a live execution",
        description="Cancel a pending, running or retrying execution. A running attempt notices it"
        " at its next heartbeat.",
    )
    add_id(add)
    add("--reason", help="reason, stored in the metadata and the history")
    add = add_command(
        commands,
        "retry",
        retry,
        help="allow another attempt of a failed or timed-out execution",
        description="Allow another attempt of a failed or timed-out execution: it becomes retrying,"
        " and a worker can claim it. A pending or retrying execution becomes due.",
    )
    add_id(add)
    add(
        "--extra-attempts",
        metavar="N",
        type=int,
        default=0,
        help="allow N attempts beyond those that are used",
    )
    add("--retry-after", metavar="D", type=duration, help="delay before the attempt, e.g. 30s")
    add = add_command(
        commands,
        "replay",
        replay,
        help="create a new execution from a finished one",
        description="Create a new pending execution with the type, payload, max_attempts, timeout,"
        " parent and metadata of a finished one. Prints its id.",
    )
    add_id(add)
    add("--payload", metavar="JSON", type=json_value, default=..., help="replace the payload")
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


def cancel(options: argparse.Namespace) -> None:
    """Cancel an execution."""
    with open_database(options.url, options.schema) as database:
        id = database.resolve_id(options.id)
        _print_status(database.manager.cancel(id, options.reason))


def retry(options: argparse.Namespace) -> None:
    """Allow another attempt of an execution."""
    with open_database(options.url, options.schema) as database:
        id = database.resolve_id(options.id)
        delay, extra = options.retry_after, options.extra_attempts
        _print_status(database.manager.retry(id, retry_after=delay, extra_attempts=extra))


def replay(options: argparse.Namespace) -> None:
    """Create a new execution from a finished one."""
    with open_database(options.url, options.schema) as database:
        id = database.resolve_id(options.id)
        _print_status(database.manager.replay(id, payload=options.payload))


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
                _print_status(each)
            size = len(batch)
            swept += size
            retried += sum(each.status is ExecutionStatus.RETRYING for each in batch)
    output.warn(f"{swept} timed out" + (f", {retried} of them to be retried" if retried else ""))


def prune(options: argparse.Namespace) -> None:
    """Prune in batches until no execution is left to delete."""
    pruned, size = 0, BATCH
    with open_database(options.url, options.schema) as database:
        while size == BATCH:
            size = database.manager.prune(
                options.older_than,
                status=options.status or None,
                type=options.type,
                keys_older_than=options.keys_older_than,
                limit=BATCH,
            )
            pruned += size
    print(f"{pruned} deleted")


def _print_status(execution: Execution) -> None:
    print(f"{execution.id} {execution.status}")
