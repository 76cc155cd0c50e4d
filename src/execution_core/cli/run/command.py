"""`run`: a real command as a tracked execution."""

import argparse
import os
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import make_url

from ...core import validation
from ...core.backoff import Backoff
from ...sql.driver.url import parse_url, sqlite_file
from ..arguments import Commands, add_url, duration
from ..database import open_database
from .events import EventQueue
from .options import RunOptions
from .runner import Run

MISUSED = 2
DESCRIPTION = """\
Run a command as a tracked execution: the cron line that knows whether it ran.

    execution-core run --key backup-$(date +%F) --max-attempts 3 --timeout 1h -- backup.sh /home

(In a crontab, % is written \\%.)

The command sees EXECUTION_ID, EXECUTION_ATTEMPT and EXECUTION_CORE_URL, so that inside it
`execution-core progress 30 100`, `checkpoint` and `log` report about it. Its output is passed on
as it comes; the last lines are kept in the result or the error, those of an attempt that timed
out or was cancelled in the log. The payload is the command as it stands here, so give it secrets
by its environment.
"""
EPILOG = """\
With a key it is done once. Called again it makes the attempts that are left, on the terms on which
it was first called; it runs nothing when it is completed, or while another one runs it.

The command runs in a session and process group of its own, without a terminal: its standard input
is that of run, or /dev/null where that is a terminal. SIGHUP, SIGINT, SIGQUIT and SIGTERM are
passed on to its group, and recorded as a failure that the next call may try again. When it has
ended by itself, what it leaves running in the background is left alone, but no longer heard.

exit codes:
  that of the command, of its last attempt: 0 done
  1      refused (no attempt is left, it was cancelled before, the key is another command's),
         or the database is away: standard error tells
  2      misused
  3      the execution was deleted between two attempts
  75     another one runs it
  124    timed out
  126    the command cannot be executed
  127    the command was not found
  128+n  ended by signal n, or run was
  143    cancelled meanwhile
"""


def register(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "run",
        help="run a command as a tracked execution",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_url(command)
    add = command.add_argument
    add("--type", metavar="T", help="what kind of work it is (default: the command's name)")
    add("--key", metavar="K", help="what makes it be done once, such as backup-2030-01-31")
    add("--max-attempts", metavar="N", type=int, default=1, help="how often it may be started"
        " (default: 1); after a failure or a timeout it is tried again at once")  # fmt: skip
    add("--backoff", metavar="D", type=duration, help="wait before that, such as 5s; after each"
        " attempt twice as long, an hour or D at most")  # fmt: skip
    add("--timeout", metavar="D", type=duration, help="end an attempt after so long, such as 30s"
        " or 1h30m: SIGTERM to its whole group, and then SIGKILL")  # fmt: skip
    add("--kill-after", metavar="D", type=duration, default="10s",
        help="how long after a signal SIGKILL follows (default: 10s)")  # fmt: skip
    add("--heartbeat", metavar="D", type=duration, default="2s", help="how often to give a sign of"
        " life, and to see whether it was cancelled (default: 2s)")  # fmt: skip
    add("--stalled-after", metavar="D", type=duration, help="take over what another one runs under"
        " the key, when it has given no sign of life for so long")  # fmt: skip
    add("--record-for", metavar="D", type=duration, default="30s", help="how long to try to record"
        " the end when the database is away (default: 30s)")  # fmt: skip
    add("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")
    command.set_defaults(run=run, misused=command.error)


def run(options: argparse.Namespace) -> int:
    """Carry out a command."""
    if os.name != "posix":
        options.misused("run needs POSIX: process groups and signals")
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not any(words[:1]):
        options.misused("there is no COMMAND: execution-core run [options] -- COMMAND")
    shown = [os.fsencode(word).decode(errors="replace") for word in words]
    events = EventQueue()
    events.install_signal_handlers()
    terms = RunOptions(
        command=words,
        url=_absolute(options.url),
        type=_type(shown[0]) if options.type is None else options.type,
        payload={"command": shown},
        key=options.key,
        max_attempts=options.max_attempts,
        timeout=options.timeout,
        backoff=options.backoff and _backoff(options.backoff),
        kill_after=validation.delay("kill_after", options.kill_after),
        heartbeat=validation.duration("heartbeat", options.heartbeat),
        stalled_after=options.stalled_after
        and validation.duration("stalled_after", options.stalled_after),
        record_for=validation.duration("record_for", options.record_for),
    )
    with open_database(options.url) as database:
        return Run(database, terms, events).exit_code()


def _type(program: str) -> str:
    return (Path(program).name or program)[: validation.MAX_NAME]


def _backoff(initial: timedelta) -> Backoff:
    validation.duration("backoff", initial)
    return Backoff(initial, maximum=max(initial, timedelta(hours=1)))


def _absolute(url: str) -> str:
    """Return a URL that names the same database when the command changes its folder."""
    parsed = parse_url(url)
    file = sqlite_file(parsed) if parsed.get_backend_name() == "sqlite" else None
    if file is None:
        return url
    path = str(file.absolute())
    if str(parsed.database).startswith("file:"):
        path = f"file:{quote(path)}"
    return make_url(url).set(database=path).render_as_string(hide_password=False)
