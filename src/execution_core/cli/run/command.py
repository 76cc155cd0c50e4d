"""The command `run`: its options and their checks."""

import argparse
import os
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from ...core import validation
from ...core.backoff import Backoff
from ..arguments import Commands, add_command, duration, user_name
from ..database import open_database
from .events import EventQueue
from .init_process import become_init
from .request import Request
from .runner import Runner
from .shared_database import share_database

KILL_AFTER = "EXECUTION_CORE_KILL_AFTER"
"""The variable by which a run inside a run learns the grace period of the outer one, in seconds."""
DESCRIPTION = """\
Run a command as a tracked execution, for example a cron job that records whether it ran:

    execution-core run --key backup-$(date +%F) --max-attempts 3 --timeout 1h -- backup.sh /home

(In a crontab, write % as \\%.)

The command gets EXECUTION_ID, EXECUTION_ATTEMPT, EXECUTION_CORE_URL and EXECUTION_CORE_SCHEMA in
its environment, so `execution-core progress 30 100`, `checkpoint` and `log` inside it report to
this execution. EXECUTION_CORE_KILL_AFTER is for a run inside it. Its output is forwarded unchanged.
The last lines are stored in the result or the error; after a timeout or a cancellation they are
stored in the log. The command line is stored as the payload: pass secrets in the environment.
"""
EPILOG = """\
With --key, the command runs at most once successfully per key. A later call with the same key makes
the remaining attempts, with the options of the first call. It does not run the command if the
execution is completed, or while it is running elsewhere.

The command runs in its own session and process group, without a terminal. Its standard input is
that of run, or /dev/null if that is a terminal. SIGHUP, SIGINT, SIGQUIT and SIGTERM are forwarded
to the group and recorded as a failure; the next call with the same key tries again. SIGUSR1 and
SIGUSR2 are only forwarded. After the command has exited, its background children keep running;
their output is discarded. If run itself is killed, a watchdog kills the process group of the
command within two seconds; processes that have left the group are not covered.

Output that cannot be written, on a full disk for example, closes the pipe of the command: it gets
SIGPIPE, as when it writes into a closed pipe itself, and the run is not completed. The recorded
lines are those that a terminal would show: what \\r overwrites is not kept, and passwords in URLs
are masked. Inside another run of the same database, the execution has the outer one as its parent.

exit codes:
  the exit code of the last attempt of the command: 0 success
  1      refused (all attempts are used, the execution was cancelled earlier, or the key belongs to
         another command), or the database is unreachable: see the message on standard error
  2      usage error
  3      the execution was deleted between two attempts
  69     the outcome could not be recorded: the database stayed unavailable
  74     the command exited with 0, but its output could not be written, e.g. on a full disk
  75     already running elsewhere
  124    timed out
  126    the command cannot be executed
  127    the command was not found
  128+n  the command, or run itself, was ended by signal n
  143    cancelled while it was running
"""


def register(commands: Commands) -> None:
    """Add the command."""
    add = add_command(
        commands,
        "run",
        run,
        help="run a command as a tracked execution",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add("--type", metavar="T", help="type of the execution (default: the name of the command)")
    add(
        "--key",
        metavar="K",
        help="idempotency key: once the command has succeeded, it does not run again with this"
        " key, e.g. backup-2030-01-31",
    )
    add("--max-attempts", metavar="N", type=int, help="maximum number of"
        " attempts (default: 1); a failed or timed-out attempt is retried immediately without"
        " --backoff")  # fmt: skip
    add_duration = partial(add, metavar="D", type=duration)
    add_duration("--backoff", help="delay before a retry, e.g. 5s; doubles each time, up to 1h")
    add_duration("--timeout", help="maximum run time per attempt, e.g. 30s or 1h30m; then the"
        " process group gets SIGTERM, and SIGKILL after --kill-after")  # fmt: skip
    add_duration("--kill-after", default="8s", help="grace period between the signal and SIGKILL"
        " (default: 8s; inside another run at most half of its own)")  # fmt: skip
    add_duration("--heartbeat", default="2s", help="interval between heartbeats, which also notice"
        " a cancellation (default: 2s)")  # fmt: skip
    add_duration("--stalled-after", help="take over if the current run of the key has sent no"
        " heartbeat for D")  # fmt: skip
    add_duration("--record-for", default="30s", help="keep retrying for D to save the outcome while"
        " the database is unavailable (default: 30s)")  # fmt: skip
    add("--quiet", action="store_true", help="say nothing if the execution is completed already")
    add("--id", metavar="ID", help="make an attempt of this execution, e.g. after retry or replay;"
        " without COMMAND, run the command that it has as its payload")  # fmt: skip
    add("--again", action="store_true", help="with --key: run the command although it was"
        " completed, cancelled or has used its attempts; see below")  # fmt: skip
    add("--run-anyway", action="store_true", help="if the database is unavailable, run the"
        " command without a record, and record it if the database is back within --record-for after"
        " its end")  # fmt: skip
    add("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")


def run(options: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    if os.name != "posix":
        options.usage_error("run needs a POSIX system, for process groups and signals")
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    _check(options, words)
    heartbeat = validation.duration("heartbeat", options.heartbeat)
    if options.stalled_after and options.stalled_after < 2 * heartbeat:
        options.usage_error("--stalled-after must be at least twice --heartbeat: between two of its"
            " heartbeats, a sound run would be taken over")  # fmt: skip
    backoff = options.backoff
    if backoff:
        initial = validation.duration("backoff", backoff)
        backoff = Backoff(initial, maximum=max(initial, timedelta(hours=1)))
    kill_after = _shorten(validation.delay("kill_after", options.kill_after))
    record_for = validation.duration("record_for", options.record_for)
    if os.getpid() == 1:
        become_init()
    events = EventQueue()
    events.install_signal_handlers()
    missing = options.run_anyway
    with (
        open_database(options.url, options.schema, may_be_missing=missing) as database,
        share_database(database, options.url, options.schema) as (environment, secrets),
    ):
        return Runner(
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
            environment=environment | {KILL_AFTER: str(kill_after.total_seconds())},
            secrets=secrets,
            backoff=backoff,
            kill_after=kill_after,
            heartbeat=heartbeat,
            record_for=record_for,
            quiet=options.quiet,
            run_anyway=options.run_anyway,
        ).run()


def _check(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Refuse options that contradict each other."""
    if not (any(words[:1]) or (options.id and not words)):
        options.usage_error("no COMMAND given: execution-core run [options] -- COMMAND")
    if options.again and options.key is None:
        options.usage_error("--again needs --key")
    if options.id is not None:
        own = ("type", "key", "max_attempts", "timeout")
        if given := next((name for name in own if getattr(options, name) is not None), None):
            options.usage_error(f"--{given.replace('_', '-')} cannot be given with --id: the"
                " execution has its own")  # fmt: skip


def _new_execution(options: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of `manager.create`."""
    printable = [os.fsencode(word).decode(errors="replace") for word in words]
    type = options.type
    if type is None and words:
        type = (Path(printable[0]).name or printable[0])[: validation.MAX_NAME]
    return {
        "type": type,
        "payload": {"command": printable},
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
