"""Turn the options of `run` into a `Runner`."""

import argparse
import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from ...core import validation
from ...core.backoff import Backoff
from ..arguments import user_name
from ..database import EXPLAINED, explain_failure, open_database
from ..output import warn
from .events import EventQueue
from .request import Request, payload_of
from .runner import KILL_AFTER, Runner
from .shared_database import share_database


def launch(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    heartbeat = validation.duration("heartbeat", options.heartbeat)
    if options.stalled_after is not None and options.stalled_after < 2 * heartbeat:
        options.usage_error("--stalled-after must be at least twice --heartbeat: between two of its"
            " heartbeats, a sound run would be taken over")  # fmt: skip
    backoff = options.backoff
    if backoff is not None:
        initial = validation.duration("backoff", backoff)
        backoff = Backoff(initial, maximum=max(initial, timedelta(hours=1)))
    kill_after = _shorten(validation.delay("kill_after", options.kill_after))
    record_for = validation.duration("record_for", options.record_for)
    if options.quiet:
        logging.getLogger("execution_core").setLevel(logging.ERROR)
    events = EventQueue()
    events.install_signal_handlers()
    missing = options.run_anyway
    runner = None
    try:
        with (
            open_database(options.url, options.schema, may_be_missing=missing) as database,
            share_database(database, options.url, options.schema) as shared,
        ):
            runner = Runner(
                database=database,
                events=events,
                request=Request(
                    id=options.id,
                    new_execution=_new_execution(options, words),
                    again=options.again,
                    stalled_after=options.stalled_after,
                    actor=user_name(),
                ),
                command=words,
                shared=shared,
                backoff=backoff,
                kill_after=kill_after,
                heartbeat=heartbeat,
                record_for=record_for,
                quiet=options.quiet,
                run_anyway=options.run_anyway,
            )
            return runner.run()
    except EXPLAINED as error:
        code, message = explain_failure(error, options.url, options.schema)
        again = " again" if runner is not None and runner.has_run else ""
        warn(message.replace(":", f": The command was not run{again}:", 1))
        return code


def _new_execution(options: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of `manager.create`."""
    payload = payload_of(words)
    type = options.type
    if type is None and words:
        name = payload["command"][0]
        type = (Path(name).name or name)[: validation.MAX_NAME]
    return {
        "type": type,
        "payload": payload,
        "max_attempts": 1 if options.max_attempts is None else options.max_attempts,
        "timeout": options.timeout,
        "idempotency_key": options.key,
        "parent_id": _parent_id(options),
    }


def _shorten(kill_after: timedelta) -> timedelta:
    """Return the grace period: inside another run it ends before the grace period of that one."""
    try:
        outer = float(os.environ.get(KILL_AFTER, "inf"))
    except ValueError:
        return kill_after
    return min(kill_after, timedelta(seconds=outer / 2)) if 0 <= outer < 1e9 else kill_after


def _parent_id(options: argparse.Namespace) -> str | None:
    """Return the execution around this one, if it is in the same database."""
    url, schema = (os.environ.get(f"EXECUTION_CORE_{name}") for name in ("URL", "SCHEMA"))
    if options.url != url or (options.schema or "") != (schema or ""):
        return None
    return os.environ.get("EXECUTION_ID") or None
