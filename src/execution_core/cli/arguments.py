"""Arguments that several commands take, and how they are read."""

import argparse
import json
import os
import re
from datetime import timedelta
from typing import Any, Final, NoReturn

from ..core.validation import MAX_PAGE
from ..sql.driver.url import DEFAULT_URL

Commands = Any
"""What `add_subparsers` returns; argparse does not name its type."""

_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_COUNT: Final = re.compile(r"\d{1,9}", re.ASCII)


def add_url(command: argparse.ArgumentParser) -> None:
    """Let a command take the database's URL."""
    command.add_argument(
        "--url",
        default=os.environ.get("EXECUTION_CORE_URL") or DEFAULT_URL,
        help="the database, as a SQLAlchemy URL of PostgreSQL or SQLite (default:"
        f" $EXECUTION_CORE_URL, which keeps a password out of sight, else {DEFAULT_URL})",
    )


def duration(text: str) -> timedelta:
    """Read `90s`, `1.5h` or `1h30m`: a number never comes without its unit."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration: give numbers with ms, s, m, h or d, such as 30s or 1h30m"
        )
    try:
        return timedelta(milliseconds=sum(float(n) * _UNITS[unit] for n, unit in parts))
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text!r} is too long") from None


def add_json_flag(
    command: argparse.ArgumentParser, says: str = "print one JSON document instead of text"
) -> None:
    """Let a reading command print JSON."""
    command.add_argument("--json", action="store_true", help=says)


def add_id(command: argparse.ArgumentParser) -> None:
    """Let a command take an execution."""
    command.add_argument(
        "id", metavar="ID", help="an execution: its id, or the beginning of it that no other has"
    )


def page_limit(text: str) -> int:
    """Read how many."""
    if not (_COUNT.fullmatch(text) and 1 <= int(text) <= MAX_PAGE):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to {MAX_PAGE}")
    return int(text)


def json_value(text: str) -> Any:
    """Read a JSON value."""
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"is no JSON: {error}") from None


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is Python's own")
