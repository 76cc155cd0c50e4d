"""Arguments that several commands share, and the functions that parse them."""

import argparse
import json
import os
import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final, NoReturn

from ..core.validation import MAX_PAGE
from ..sql.driver.url import DEFAULT_URL

Commands = Any
"""The result of `add_subparsers`, whose type argparse does not publish."""

_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_COUNT: Final = re.compile(r"\d{1,9}", re.ASCII)


def add_url(command: argparse.ArgumentParser) -> None:
    """Add --url, the URL of the database."""
    command.add_argument(
        "--url",
        default=os.environ.get("EXECUTION_CORE_URL") or DEFAULT_URL,
        help="SQLAlchemy URL of the PostgreSQL or SQLite database (default:"
        f" $EXECUTION_CORE_URL, which hides a password from ps, else {DEFAULT_URL})",
    )


def duration(text: str) -> timedelta:
    """Parse `90s`, `1.5h` or `1h30m`; each number needs a unit."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise argparse.ArgumentTypeError(f"invalid duration {text!r}: {_advise_unit(text)}")
    try:
        return timedelta(milliseconds=sum(float(n) * _UNITS[unit] for n, unit in parts))
    except OverflowError:
        raise argparse.ArgumentTypeError(f"invalid duration {text!r}: it is too long") from None


def _advise_unit(text: str) -> str:
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return f"add a unit, e.g. {text}s"
    return "use numbers with the units ms, s, m, h or d, e.g. 30s or 1h30m"


def add_choices(
    command: argparse.ArgumentParser, name: str, choices: Iterable[str], help: str
) -> None:
    """Add an option that may be repeated, each time with one of the choices."""
    command.add_argument(
        name, action="append", choices=[str(each) for each in choices], default=[], help=help
    )


def add_json_flag(
    command: argparse.ArgumentParser, help: str = "print one JSON document instead of text"
) -> None:
    """Add --json."""
    command.add_argument("--json", action="store_true", help=help)


def add_id(command: argparse.ArgumentParser) -> None:
    """Add the positional ID argument."""
    command.add_argument("id", metavar="ID", help="the execution: its id or a unique id prefix")


def page_limit(text: str) -> int:
    """Parse the value of --limit."""
    if not (_COUNT.fullmatch(text) and 1 <= int(text) <= MAX_PAGE):
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
