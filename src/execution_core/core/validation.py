"""Checks of arguments, before they reach a database.

Each check takes the argument's name and value, returns the value as it is stored, or raises
`InvalidValue`. The checks refuse what one of the databases would refuse, drop or change silently,
so that SQLite, PostgreSQL and any other store behave alike.
"""

import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast
from uuid import UUID

from .errors import ExecutionNotFound, InvalidValue
from .models import MAX_MESSAGE, ExecutionStatus, ProgressInfo

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils import uuid7

MAX_NAME = 255
"""Characters in a type, an idempotency key, a checkpoint key or a worker's name."""
MAX_PAGE = 10_000
MAX_INTEGER = 2**31 - 1
MAX_BIG_INTEGER = 2**63 - 1
MAX_TIMEOUT = timedelta(days=36_500)
NO_NUL: Final = "must not contain U+0000, which PostgreSQL cannot store"
NO_SURROGATE: Final = "must not contain a lone surrogate, which UTF-8 cannot encode"

_UUID: Final = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_MILLISECOND: Final = timedelta(milliseconds=1)


def new_id() -> str:
    """Return a new UUIDv7: ids sort by the time of creation."""
    return str(uuid7())


def execution_id(value: object) -> str:
    """Return an id as it is stored. No execution can have an id that is not a UUID."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str) and _UUID.fullmatch(value):
        return str.lower(value)
    raise ExecutionNotFound(value if isinstance(value, str) else f"<{type(value).__name__}>")


def cursor(argument: str, value: object) -> str:
    """Return the id that a page continues from."""
    try:
        return execution_id(value)
    except ExecutionNotFound:
        raise InvalidValue(argument, f"must be an id (a UUID), not {value!r:.80}") from None


def text(argument: str, value: object, most: int) -> str:
    """Return a string of at most `most` characters that every database can store."""
    if not isinstance(value, str):
        raise InvalidValue(argument, f"must be a string, not {type_name(value)}")
    value = str.__str__(value)  # a plain string also of a StrEnum
    if "\0" in value:
        raise InvalidValue(argument, NO_NUL)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidValue(argument, NO_SURROGATE) from error
    if len(value) > most:
        raise InvalidValue(argument, f"must have at most {most} characters, not {len(value)}")
    return value


def name(argument: str, value: object) -> str:
    """Return a string of 1 to 255 characters."""
    if isinstance(value, str) and not value:
        raise InvalidValue(argument, "must not be empty")
    return text(argument, value, MAX_NAME)


def names(argument: str, value: object) -> tuple[str, ...]:
    """Return one or several names as a tuple without duplicates."""
    one = isinstance(value, str | bytes) or not isinstance(value, Iterable)
    several: Iterable[Any] = [value] if one else cast("Iterable[Any]", value)
    return tuple(dict.fromkeys(name(argument, each) for each in several))


def time(argument: str, value: object) -> datetime | None:
    """Return an aware datetime in UTC, or None."""
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidValue(argument, "must be an aware datetime, such as datetime.now(UTC)")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidValue(argument, "must be in the years 1 to 9999 of UTC") from None


def integer(argument: str, value: object, least: int, most: int) -> int:
    """Return an integer from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidValue(argument, f"must be an integer, not {type_name(value)}")
    value = int.__int__(value)
    if not least <= value <= most:
        raise InvalidValue(argument, f"must be from {least} to {most}, not {_digits(value)}")
    return value


def flag(argument: str, value: object) -> bool:
    """Return a bool; other values are refused, because their truth value would be a guess."""
    if not isinstance(value, bool):
        raise InvalidValue(argument, f"must be True or False, not {type_name(value)}")
    return value


def duration(argument: str, value: object) -> timedelta:
    """Return a positive timedelta in whole milliseconds, the unit of the schema."""
    return max(_MILLISECOND, _milliseconds(argument, value, "more than 0", timedelta.resolution))


def delay(argument: str, value: object) -> timedelta:
    """Return a timedelta of 0 or more, in whole milliseconds."""
    return _milliseconds(argument, value, "at least 0", timedelta(0))


def _milliseconds(argument: str, value: object, bound: str, least: timedelta) -> timedelta:
    if not isinstance(value, timedelta):
        raise InvalidValue(argument, f"must be a timedelta, not {type_name(value)}")
    if not least <= value <= MAX_TIMEOUT:
        raise InvalidValue(argument, f"must be {bound} and at most {MAX_TIMEOUT.days} days")
    return round(value / _MILLISECOND) * _MILLISECOND


def number(argument: str, value: object, least: float, most: float) -> float:
    """Return a number from `least` to `most`; NaN is refused."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidValue(argument, f"must be a number, not {type_name(value)}")
    if not least <= value <= most:
        raise InvalidValue(argument, f"must be from {least} to {most}")
    return float(value) + 0.0  # SQLite does not store the sign of a negative zero


def statuses(value: object) -> tuple[ExecutionStatus, ...]:
    """Return one or several statuses as a tuple without duplicates."""
    values: Iterable[Any] = (
        value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    )
    try:
        return tuple(dict.fromkeys(ExecutionStatus(each) for each in values))
    except ValueError:
        allowed = ", ".join(ExecutionStatus)
        raise InvalidValue("status", f"must be one or several of {allowed}") from None


def progress(current: object, total: object, message: object, percent: object) -> ProgressInfo:
    """Return a progress; a missing percentage is computed, and is 100 only at the end."""
    current = integer("current", current, 0, MAX_BIG_INTEGER)
    total = integer("total", total, 0, MAX_BIG_INTEGER)
    if percent is None:
        # Integer division rounds down to two digits: rounding could show 100 before the end.
        percent = min(100.0, current * 10_000 // total / 100) if total else 0.0
    else:
        percent = number("percent", percent, 0, 100)
    return ProgressInfo(
        current=current,
        total=total,
        message=None if message is None else text("message", message, MAX_MESSAGE),
        percent=percent,
    )


def type_name(value: object) -> str:
    """Return the name of a value's type with its article, for an error message."""
    type_ = type(value).__name__
    return f"{'an' if type_[0] in 'aeiouAEIOU' else 'a'} {type_}" if value is not None else "None"


def _digits(value: int) -> str:
    return str(value) if value.bit_length() < 128 else "an integer of that size"
