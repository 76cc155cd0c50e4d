"""What moves, does again or deletes executions: `cancel`, `retry`, `replay`, `sweep`, `prune`."""

import argparse
from typing import Final

from ...core.models import Execution, ExecutionStatus
from ...core.state_machine import FINISHED
from ...tracking.manager import ExecutionManager
from .. import output, queries
from ..arguments import Commands, add_id, add_url, duration, json_value
from ..database import Database, open_database

BATCH: Final = 1_000


def register(commands: Commands) -> None:
    """Add the commands."""
    one = commands.add_parser(
        "cancel",
        help="call off an execution that is pending or running",
        description="Call off an execution that is pending or running. Its attempt learns it from"
        " its next sign of life.",
    )
    add_id(one)
    add_url(one)
    one.add_argument("--reason", help="why, for those who ask later")
    one.set_defaults(run=cancel)

    one = commands.add_parser(
        "retry",
        help="allow a failed or timed-out execution another attempt",
        description="Allow a failed or timed-out execution another attempt, while one is left:"
        " it becomes retrying, for whoever claims or starts it. To do one again that has none"
        " left, see replay.",
    )
    add_id(one)
    add_url(one)
    one.set_defaults(run=retry)

    one = commands.add_parser(
        "replay",
        help="do again what is over, as a new execution",
        description="Do again what is over, as a new pending execution with the same type, payload,"
        " max_attempts, timeout, parent and metadata. Prints its id.",
    )
    add_id(one)
    add_url(one)
    one.add_argument("--payload", metavar="JSON", type=json_value, default=..., help="another one")
    one.set_defaults(run=replay)

    _register_sweep(commands)
    _register_prune(commands)


def _register_sweep(commands: Commands) -> None:
    one = commands.add_parser(
        "sweep",
        help="time out what is past its deadline, or gives no sign of life",
        description="Time out every running execution that is past its deadline or, with"
        " --stalled-after, has given no sign of life for so long; with --retry, allow each another"
        " attempt while one is left.",
    )
    add_url(one)
    one.add_argument("--stalled-after", metavar="TIME", type=duration, help="such as 10m")
    one.add_argument("--type", help="only this type")
    one.add_argument("--retry", action="store_true", help="allow another attempt where one is left")
    one.set_defaults(run=sweep)


def _register_prune(commands: Commands) -> None:
    one = commands.add_parser(
        "prune",
        help="delete what has been over for long",
        description="Delete executions that came to rest long ago, with their history and log, the"
        f" oldest first, in batches of {BATCH:,}. Never what is pending, running or retrying, and"
        " never a parent of what is. This cannot be undone.",
    )
    add_url(one)
    one.add_argument(
        "--older-than", metavar="AGE", type=duration, required=True, help="over for so long: 30d"
    )
    one.add_argument(
        "--keys-older-than",
        metavar="AGE",
        type=duration,
        help="the same for executions with an idempotency key, which keep their work from being"
        " done twice (default: as --older-than)",
    )
    one.add_argument(
        "--status",
        action="append",
        choices=list(FINISHED),
        help="only this status; may be given several times",
    )
    one.add_argument("--type", help="only this type")
    one.set_defaults(run=prune)


def cancel(options: argparse.Namespace) -> int:
    """Cancel one."""
    with open_database(options.url) as database:
        _tell(database.manager.cancel(_id(database, options), options.reason))
    return 0


def retry(options: argparse.Namespace) -> int:
    """Retry one."""
    with open_database(options.url) as database:
        _tell(database.manager.retry(_id(database, options)))
    return 0


def replay(options: argparse.Namespace) -> int:
    """Replay one."""
    with open_database(options.url) as database:
        _tell(database.manager.replay(_id(database, options), payload=options.payload))
    return 0


def sweep(options: argparse.Namespace) -> int:
    """Sweep until there is nothing left to find."""
    swept = retried = 0
    with open_database(options.url) as database:
        while True:
            # One transaction: nothing is swept without its retry.
            with database.engine.begin() as connection:
                inside = database.manager.within(connection)
                batch = inside.sweep(
                    stalled_after=options.stalled_after, type=options.type, limit=BATCH
                )
                if options.retry:
                    batch = [_retried(inside, each) for each in batch]
            for each in batch:  # not before it is committed
                _tell(each)
            swept += len(batch)
            retried += sum(each.status is ExecutionStatus.RETRYING for each in batch)
            if len(batch) < BATCH:
                break
    output.warn(f"{swept} timed out" + (f", {retried} of them to be retried" if retried else ""))
    return 0


def prune(options: argparse.Namespace) -> int:
    """Prune until there is nothing left to delete."""
    pruned = 0
    with open_database(options.url) as database:
        while True:
            batch = database.manager.prune(
                options.older_than,
                status=options.status,
                type=options.type,
                keys_older_than=options.keys_older_than,
                limit=BATCH,
            )
            pruned += batch
            if batch < BATCH:
                break
    print(f"{pruned} deleted")
    return 0


def _id(database: Database, options: argparse.Namespace) -> str:
    with database.reader.connect() as connection:
        return queries.resolve_id(connection, options.id)


def _retried(manager: ExecutionManager, swept: Execution) -> Execution:
    return manager.retry(swept.id) if swept.attempts < swept.max_attempts else swept


def _tell(execution: Execution) -> None:
    print(f"{execution.id} {execution.status}")
