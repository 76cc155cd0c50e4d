"""The commands that change one execution, such as `cancel`, `retry` and `complete`."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from ...core.models import Execution, ExecutionFailure
from ...tracking.manager import ExecutionManager
from ..arguments import (
    AddArgument,
    Commands,
    add_actor,
    add_command,
    add_id,
    duration,
    json_value,
)
from ..database import open_database
from ..output import warn

Verb = Callable[[ExecutionManager, str, argparse.Namespace], Execution | int]


def register(commands: Commands) -> None:
    """Add the commands."""
    add_command = partial(_add_command, commands)
    add = add_command(
        "cancel",
        _cancel,
        "cancel a live execution",
        "Cancel a pending, running or retrying execution. A running attempt notices it at its next"
        " heartbeat.",
    )
    add("--reason", help="reason, stored in the metadata and the history")
    add("--tree", action="store_true", help="also cancel everything below it that is live, and"
        " print how many were cancelled")  # fmt: skip
    add = add_command(
        "retry",
        _retry,
        "allow another attempt of a failed or timed-out execution",
        "Allow another attempt of a failed or timed-out execution: it becomes retrying, and a"
        " worker can claim it. A pending or retrying execution becomes due.",
    )
    add(
        "--extra-attempts",
        metavar="N",
        type=int,
        default=0,
        help="allow N attempts beyond those that are used",
    )
    add("--retry-after", metavar="D", type=duration, help="delay before the attempt, e.g. 30s")
    add = add_command(
        "replay",
        _replay,
        "create a new execution from a finished one",
        "Create a new pending execution with the type, payload, max_attempts, timeout, parent and"
        " metadata of a finished one. Prints its id.",
    )
    add("--payload", metavar="JSON", type=json_value, default=..., help="replace the payload")
    add("--keep-checkpoints", action="store_true", help="begin with its checkpoints")
    add = add_command("complete", _complete, "complete a running execution", fenced=True)
    add("--result", metavar="JSON", type=json_value, help="the result")
    add = add_command("fail", _fail, "record that a running execution failed", fenced=True)
    add("message", metavar="MESSAGE", help="why it failed")
    add("--code", help="short name of the failure")
    add("--retryable", action="store_true", help="allow another attempt if attempts are left")
    add("--retry-after", metavar="D", type=duration, help="the same, after this delay")
    add_command("timeout", _time_out, "record that a running execution took too long", fenced=True)
    add_command(
        "release",
        _release,
        "hand back the attempt of a running execution",
        "Make a running execution due again. Its attempt is not lost: another one is allowed.",
        fenced=True,
    )
    add_command(
        "finish-with-children",
        _finish_with_children,
        "let the children of a running execution end it",
        "Let the children of a running execution end it: it is completed once all of them are"
        " completed, and failed once none is live and one is not completed.",
        fenced=True,
    )
    add_command(
        "redact",
        _redact,
        "remove the data of a finished execution",
        "Remove payload, result, progress, checkpoints, log and the texts of errors of a finished"
        " execution. This cannot be undone.",
    )


def _cancel(manager: ExecutionManager, id: str, options: argparse.Namespace) -> Execution | int:
    cancel = manager.cancel_tree if options.tree else manager.cancel
    return cancel(id, options.reason, by=options.by)


def _retry(manager: ExecutionManager, id: str, options: argparse.Namespace) -> Execution:
    delay, extra = options.retry_after, options.extra_attempts
    return manager.retry(id, retry_after=delay, extra_attempts=extra, by=options.by)


def _replay(manager: ExecutionManager, id: str, options: argparse.Namespace) -> Execution:
    payload, keep = options.payload, options.keep_checkpoints
    return manager.replay(id, payload=payload, keep_checkpoints=keep, by=options.by)


def _complete(manager: ExecutionManager, id: str, options: argparse.Namespace) -> Execution:
    return manager.complete(id, options.result, attempt=options.attempt, by=options.by)


def _fail(manager: ExecutionManager, id: str, options: argparse.Namespace) -> Execution:
    error = ExecutionFailure(message=options.message, code=options.code)
    return manager.fail(
        id,
        error,
        retryable=True if options.retryable else None,
        retry_after=options.retry_after,
        attempt=options.attempt,
        by=options.by,
    )


def _time_out(manager: ExecutionManager, id: str, options: argparse.Namespace) -> Execution:
    return manager.timeout(id, attempt=options.attempt, by=options.by)


def _release(manager: ExecutionManager, id: str, options: argparse.Namespace) -> Execution:
    return manager.release(id, attempt=options.attempt, by=options.by)


def _finish_with_children(
    manager: ExecutionManager, id: str, options: argparse.Namespace
) -> Execution:
    return manager.finish_with_children(id, attempt=options.attempt)


def _redact(manager: ExecutionManager, id: str, _: argparse.Namespace) -> Execution:
    return manager.redact(id)


def _add_command(
    commands: Commands,
    name: str,
    verb: Verb,
    summary: str,
    description: str | None = None,
    *,
    fenced: bool = False,
) -> AddArgument:
    whole = description or f"{summary.capitalize()}."
    run: Any = partial(_run, verb)
    add = add_command(commands, name, run, help=summary, description=whole)
    add_id(add)
    if verb not in (_finish_with_children, _redact):
        add_actor(add)
    if fenced:
        add("--attempt", metavar="N", type=int, help="refuse unless this attempt is running")
    return add


def _run(verb: Verb, options: argparse.Namespace) -> None:
    with open_database(options.url, options.schema) as database:
        done = verb(database.manager, database.resolve_id(options.id), options)
    if isinstance(done, int):
        print(f"{done} cancelled")
        return
    print(f"{done.id} {done.status}")
    payload = done.payload
    if verb in (_replay, _retry) and isinstance(payload, dict) and "command" in payload:
        warn(f"It does not run yet. To run it: {database.command(f'run --id {done.id}')}")
