"""The commands that change executions: `cancel`, `retry`, `replay`, `sweep` and `prune`."""

import argparse
from typing import Final

from ...core.models import Execution, ExecutionStatus
from ...core.state_machine import FINISHED
from ...tracking.manager import ExecutionManager
from .. import output, queries
from ..arguments import Commands, add_choices, add_id, add_url, duration, json_value
from ..database import Database, open_database

BATCH: Final = 1_000


def register(commands: Commands) -> None:
    """Add the commands."""
    one = commands.add_parser(
        "cancel",
        help="cancel a pending or running execution",
        description="Cancel a pending or running execution. A running attempt notices it at its"
        " next heartbeat.",
    )
    add_id(one)
    add_url(one)
    one.add_argument("--reason", help="reason, stored in the metadata and the history")
    one.set_defaults(run=cancel)

    one = commands.add_parser(
        "retry",
        help="allow another attempt of a failed or timed-out execution",
        description="Allow another attempt of a failed or timed-out execution: it becomes retrying,"
        " and a worker can claim it. If all its attempts are used, use replay.",
    )
    add_id(one)
    add_url(one)
    one.set_defaults(run=retry)

    one = commands.add_parser(
        "replay",
        help="create a new execution from a finished one",
        description="Create a new pending execution with the type, payload, max_attempts, timeout,"
        " parent and metadata of a finished one. Prints its id.",
    )
    add_id(one)
    add_url(one)
    one.add_argument(
        "--payload", metavar="JSON", type=json_value, default=..., help="replace the payload"
    )
    one.set_defaults(run=replay)

    _register_sweep(commands)
    _register_prune(commands)


def _register_sweep(commands: Commands) -> None:
    one = commands.add_parser(
        "sweep",
        help="time out running executions that are overdue or stalled",
        description="Time out every running execution that is past its deadline or, with"
        " --stalled-after, has sent no heartbeat for that time. With --retry, allow another attempt"
        " of each that has attempts left.",
    )
    add_url(one)
    one.add_argument(
        "--stalled-after",
        metavar="TIME",
        type=duration,
        help="also time out executions without a heartbeat for TIME, e.g. 10m",
    )
    one.add_argument("--type", help="only executions of this type")
    one.add_argument(
        "--retry", action="store_true", help="allow another attempt if attempts are left"
    )
    one.set_defaults(run=sweep)


def _register_prune(commands: Commands) -> None:
    one = commands.add_parser(
        "prune",
        help="delete old finished executions",
        description="Delete executions that finished long ago, with their history and log, oldest"
        f" first, in batches of {BATCH:,}. Live executions and their parents are never deleted."
        " This cannot be undone.",
    )
    add_url(one)
    one.add_argument(
        "--older-than",
        metavar="AGE",
        type=duration,
        required=True,
        help="finished more than AGE ago, e.g. 30d",
    )
    one.add_argument(
        "--keys-older-than",
        metavar="AGE",
        type=duration,
        help="the same for executions with an idempotency key, which prevent a second run under the"
        " key (default: as --older-than)",
    )
    add_choices(one, "--status", FINISHED, "only executions with this status; may be repeated")
    one.add_argument("--type", help="only executions of this type")
    one.set_defaults(run=prune)


def cancel(options: argparse.Namespace) -> int:
    """Cancel an execution."""
    with open_database(options.url) as database:
        _print_status(database.manager.cancel(_resolve_id(database, options), options.reason))
    return 0


def retry(options: argparse.Namespace) -> int:
    """Allow another attempt of an execution."""
    with open_database(options.url) as database:
        _print_status(database.manager.retry(_resolve_id(database, options)))
    return 0


def replay(options: argparse.Namespace) -> int:
    """Create a new execution from a finished one."""
    with open_database(options.url) as database:
        id = _resolve_id(database, options)
        _print_status(database.manager.replay(id, payload=options.payload))
    return 0


def sweep(options: argparse.Namespace) -> int:
    """Sweep in batches until no execution is left to time out."""
    swept = retried = 0
    with open_database(options.url) as database:
        while True:
            # One transaction, so that no execution is timed out without its retry.
            with database.engine.begin() as connection:
                inside = database.manager.within(connection)
                batch = inside.sweep(
                    stalled_after=options.stalled_after, type=options.type, limit=BATCH
                )
                if options.retry:
                    batch = [_retry_if_allowed(inside, each) for each in batch]
            for each in batch:  # after the commit
                _print_status(each)
            swept += len(batch)
            retried += sum(each.status is ExecutionStatus.RETRYING for each in batch)
            if len(batch) < BATCH:
                break
    output.warn(f"{swept} timed out" + (f", {retried} of them to be retried" if retried else ""))
    return 0


def prune(options: argparse.Namespace) -> int:
    """Prune in batches until no execution is left to delete."""
    pruned = 0
    with open_database(options.url) as database:
        while True:
            batch = database.manager.prune(
                options.older_than,
                status=options.status or None,
                type=options.type,
                keys_older_than=options.keys_older_than,
                limit=BATCH,
            )
            pruned += batch
            if batch < BATCH:
                break
    print(f"{pruned} deleted")
    return 0


def _resolve_id(database: Database, options: argparse.Namespace) -> str:
    with database.reader.connect() as connection:
        return queries.resolve_id(connection, options.id)


def _retry_if_allowed(manager: ExecutionManager, swept: Execution) -> Execution:
    return manager.retry(swept.id) if swept.attempts < swept.max_attempts else swept


def _print_status(execution: Execution) -> None:
    print(f"{execution.id} {execution.status}")
