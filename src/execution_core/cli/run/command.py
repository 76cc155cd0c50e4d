"""The command `run`: its options and their checks."""

import argparse
import os
from collections.abc import Sequence
from functools import partial

from ..arguments import Commands, add_command, duration

DESCRIPTION = """\
Run a command as a tracked execution, for example a cron job that records whether it ran:

    execution-core run --key backup-$(date +%F) --max-attempts 3 --timeout 1h -- backup.sh /home

(In a crontab, write % as \\%.)

Inside the command, `execution-core progress 30 100`, `checkpoint` and `log` report to this
execution. The environment variables EXECUTION_ID, EXECUTION_ATTEMPT, EXECUTION_CORE_URL,
EXECUTION_CORE_SCHEMA, EXECUTION_CORE_SOCKET and EXECUTION_CORE_KILL_AFTER are for them and for a
run inside the command. The output of the command is forwarded unchanged. Its last lines are stored
in the result or the error; after a timeout or a cancellation they are stored in the log. The
command line is stored as the payload: pass secrets in the environment.
"""
EPILOG = """\
With --key, the command runs at most once successfully per key. A later call with the same key makes
the remaining attempts, with the options of the first call. It does not run the command if the
execution is completed, or while it is running elsewhere. With --again, one that is completed or
cancelled is replayed, and one that has used its attempts gets another one. --id makes an attempt of
a given execution, for example of a replay.

The command runs in its own session and process group, without a terminal. SIGHUP, SIGINT, SIGQUIT
and SIGTERM are forwarded to the group and recorded as a failure; the next call with the same key
tries again. SIGUSR1 and SIGUSR2 are only forwarded. After the command has exited, its background
children keep running; their output is discarded. If run itself is killed, a watchdog kills the
process group of the command within two seconds; processes that have left the group are not covered.
As the first process of a container, run also reaps orphans.

The standard input of the command is that of run, or /dev/null if that is a terminal. For each
attempt it begins again: a file is rewound, and what a pipe delivers is kept in a temporary file, at
most 256 MiB. After more than that, no further attempt is made.

Output that cannot be written closes the pipe of the command: it gets SIGPIPE, as when it writes
into a closed pipe itself. If the reason is a full disk, for example, the run is not completed, even
if the command exits with 0. A closed standard output is /dev/null. The recorded
lines are those that a terminal would show: what \\r overwrites is not kept, and passwords in URLs
are masked. Inside another run of the same database, the execution has the outer one as its parent.

The EXECUTION_CORE_URL of the command contains no password: it names a file that contains it, which
only this user can read, and which is deleted when the attempt ends.

If the database is unavailable, the command is not run. With --run-anyway it runs, perhaps a second
time for its key, and is recorded afterwards; the log of the execution then says when it ran. If the
key turns out to be completed or running elsewhere, it ran twice: the message and the log say so.

exit codes:
  the exit code of the last attempt of the command: 0 success
  1      refused (all attempts are used, the execution was cancelled earlier, or the key belongs to
         another command), or the database is unreachable, or somebody else ended the attempt: see
         the message on standard error
  2      usage error
  3      the execution was deleted between two attempts
  69     the command ran, but its outcome is not recorded: the database stayed unavailable or, with
         --run-anyway, its execution is completed or running elsewhere, or allows no attempt
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
    add_duration("--backoff", help="delay before a retry, e.g. 5s; doubles each time, up to 1h,"
        " and is up to a tenth shorter, at random")  # fmt: skip
    add_duration("--timeout", help="maximum run time per attempt, e.g. 30s or 1h30m; then the"
        " process group gets SIGTERM, and SIGKILL after --kill-after")  # fmt: skip
    add_duration("--kill-after", default="8s", help="grace period between the signal and SIGKILL"
        " (default: 8s; inside another run at most half of its own)")  # fmt: skip
    add_duration("--heartbeat", default="2s", help="interval between heartbeats, which also notice"
        " a cancellation (default: 2s)")  # fmt: skip
    add_duration("--stalled-after", help="take over if the current run of the key has sent no"
        " heartbeat for D and has an attempt left: see --max-attempts")  # fmt: skip
    add_duration("--record-for", default="30s", help="keep retrying for D to save the outcome while"
        " the database is unavailable (default: 30s)")  # fmt: skip
    add("--quiet", action="store_true", help="say nothing if the execution is completed"
        " already, or is running elsewhere with a heartbeat in the last minute")  # fmt: skip
    add("--id", metavar="ID", help="make an attempt of this execution, e.g. after retry or replay;"
        " without COMMAND, run the command that it has as its payload")  # fmt: skip
    add("--again", action="store_true", help="with --key: run the command although it was"
        " completed, cancelled or has used its attempts; once, in a shell, not in a crontab; see"
        " below")  # fmt: skip
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
    from .launch import launch  # noqa: PLC0415 - needs POSIX; the other commands do without it

    return launch(options, words)


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
