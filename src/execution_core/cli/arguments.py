"""Arguments that several commands share, and the functions that parse them."""

import argparse
import getpass
import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NoReturn

from ..core.validation import MAX_NAME, MAX_PAGE
from ..sql.driver.url import DEFAULT_URL
from .output import mask_passwords

Commands = Any
"""The result of `add_subparsers`, whose type argparse does not publish."""
AddArgument = Callable[..., argparse.Action]
"""The method `add_argument` of a parser."""

_UNITS: Final = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)


class UsageError(Exception):
    """A command line that cannot be parsed; the text includes the usage."""


class Parser(argparse.ArgumentParser):
    """A parser that raises its errors, without the password of a misplaced URL."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError with the usage and the message."""
        raise UsageError(
            mask_passwords(f"{self.format_usage()}{self.prog}: error: {message}")
        ) from None


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int | None], **settings: Any
) -> AddArgument:
    """Add a command with --url, and return its `add_argument`; settings are those of a parser."""
    command: argparse.ArgumentParser = commands.add_parser(name, **settings)
    command.set_defaults(run=run, usage_error=command.error)
    command.add_argument(
        "--url",
        default=os.environ.get("EXECUTION_CORE_URL") or DEFAULT_URL,
        help="SQLAlchemy URL of the PostgreSQL or SQLite database (default:"
        f" $EXECUTION_CORE_URL, which hides a password from ps, else {DEFAULT_URL})",
    )
    command.add_argument(
        "--schema",
        metavar="NAME",
        default=os.environ.get("EXECUTION_CORE_SCHEMA") or None,
        help="schema of PostgreSQL that contains the tables (default: $EXECUTION_CORE_SCHEMA, else"
        " the first one of search_path)",
    )
    return command.add_argument


def add_id(add: AddArgument) -> None:
    """Add the positional ID argument."""
    add("id", metavar="ID", help="the execution: its id or a unique id prefix")


def add_json_flag(add: AddArgument, help: str = "print one JSON document instead of text") -> None:
    """Add --json."""
    add("--json", action="store_true", help=help)


def add_actor(add: AddArgument) -> None:
    """Add --by."""
    add(
        "--by",
        metavar="NAME",
        default=user_name(),
        help="who does it, for the history (default: the user of the operating system)",
    )


def user_name() -> str | None:
    """Return the user of the operating system, None if it has no name."""
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()[:MAX_NAME] or None
    return None  # a container may have no entry for its user


def add_choices(add: AddArgument, name: str, choices: Iterable[str], help: str) -> None:
    """Add an option that takes some of the choices, and may be repeated."""
    known = [str(each) for each in choices]

    def chosen(text: str) -> list[str]:
        found = text.split(",")
        for each in found:
            if each not in known:
                allowed = ", ".join(known)
                raise argparse.ArgumentTypeError(
                    f"invalid choice: {each!r} (choose from {allowed})"
                )
        return found

    several = f"{{{','.join(known)}}}[,...]"
    help = f"{help}; several with commas, or repeat it"
    add(name, action="extend", type=chosen, metavar=several, default=[], help=help)


def duration(text: str) -> timedelta:
    """Parse `90s`, `1.5h` or `1h30m`; each number needs a unit."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        advice = "use numbers with the units ms, s, m, h, d or w, e.g. 30s or 1h30m"
        if _DURATION.fullmatch(f"{text}s"):
            advice = f"add a unit, e.g. {text}s"
        raise argparse.ArgumentTypeError(f"invalid duration {text!r}: {advice}")
    try:
        return timedelta(milliseconds=sum(float(n) * _UNITS[unit] for n, unit in parts))
    except OverflowError:
        raise argparse.ArgumentTypeError(f"invalid duration {text!r}: it is too long") from None


def page_limit(text: str) -> int:
    """Parse the value of --limit."""
    if not (text.isdecimal() and 1 <= int(text) <= MAX_PAGE):
        raise argparse.ArgumentTypeError(
            f"invalid limit {text!r}: use a whole number from 1 to {MAX_PAGE}"
        )
    return int(text)


def json_value(text: str) -> Any:
    """Parse a JSON value."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not valid JSON: {error}") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not part of JSON")
