"""What may be stored: every argument is checked here, before it reaches a database.

Each check takes the argument's name and value, returns the value as it is stored, and raises
`InvalidValue` otherwise. They refuse what a database would refuse, drop or change in silence, so
that SQLite, PostgreSQL and any other store behave alike.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from .errors import ExecutionNotFound, InvalidValue
from .execution import MAX_MESSAGE, ExecutionStatus, ProgressInfo

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils import uuid7

MAX_NAME = 255
"""Characters in a type, an idempotency key, a checkpoint key or a worker's name."""
MAX_DEPTH = 200
"""Levels of dicts and lists in a JSON value."""
MAX_JSON_BYTES = 16 * 2**20
"""A JSON value in UTF-8, where a manager is not told otherwise."""
MAX_PAGE = 10_000
MAX_INTEGER = 2**31 - 1
MAX_BIG_INTEGER = 2**63 - 1
MAX_TIMEOUT = timedelta(days=36_500)

_UUID: Final = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_NUL_ESCAPE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_TEXT_OR_LARGE_FLOAT: Final = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(?<![\d.])-?[\d.]+e\+\d+', re.ASCII
)
_MILLISECOND: Final = timedelta(milliseconds=1)
_SCALARS: Final = frozenset((str, int, float, bool, NoneType))
_ENCODABLE: Final = (date, time, timedelta, UUID, Decimal, Enum, BaseModel)


@dataclass(frozen=True, slots=True)
class Json:
    """A checked JSON value as its text; `value` reads a fresh copy of it each time."""

    text: str

    @property
    def value(self) -> Any:
        """The value that the text stands for."""
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a JSON object and its new value."""

    key: str
    value: Json

    @property
    def text(self) -> str:
        """A JSON object of just this entry."""
        return f"{{{_dump(self.key)}:{self.value.text}}}"

    @property
    def null_text(self) -> str:
        """The same object with null in the value's place: the JSON merge patch that removes it."""
        return f"{{{_dump(self.key)}:null}}"


EMPTY: Final = Json("{}")


def new_id() -> str:
    """Return a UUIDv7, which sorts by the time of creation."""
    return str(uuid7())


def execution_id(value: object) -> str:
    """Return an id as it is stored; what is no UUID is the id of no execution."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str) and _UUID.fullmatch(value):
        return value.lower()
    raise ExecutionNotFound(value if isinstance(value, str) else f"<{type(value).__name__}>")


def text(argument: str, value: object, most: int) -> str:
    """Return a text that every database can hold, of `most` characters."""
    if not isinstance(value, str):
        raise InvalidValue(argument, f"must be a text, not {_type(value)}")
    value = str.__str__(value)  # an enum of texts goes in as the plain text that it is
    if "\0" in value:
        raise InvalidValue(argument, "holds U+0000, which PostgreSQL cannot store")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidValue(argument, "holds a lone surrogate, which is no character") from error
    if len(value) > most:
        raise InvalidValue(argument, f"must have at most {most} characters, not {len(value)}")
    return value


def name(argument: str, value: object) -> str:
    """Return a text of 1 to 255 characters."""
    if value == "":
        raise InvalidValue(argument, "must not be empty")
    return text(argument, value, MAX_NAME)


def integer(argument: str, value: object, least: int, most: int) -> int:
    """Return a whole number within bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidValue(argument, f"must be a whole number, not {_type(value)}")
    value = int.__int__(value)
    if not least <= value <= most:
        raise InvalidValue(argument, f"must be from {least} to {most}, not {_number(value)}")
    return value


def flag(argument: str, value: object) -> bool:
    """Return a bool; truthiness would be a guess."""
    if not isinstance(value, bool):
        raise InvalidValue(argument, f"must be True or False, not {_type(value)}")
    return value


def duration(argument: str, value: object) -> timedelta:
    """Return a positive timedelta in whole milliseconds, the unit of the schema."""
    return max(_MILLISECOND, _span(argument, value, "more than 0", timedelta.resolution))


def delay(argument: str, value: object) -> timedelta:
    """Return a timedelta that may be 0, in whole milliseconds."""
    return _span(argument, value, "at least 0", timedelta(0))


def _span(argument: str, value: object, says: str, least: timedelta) -> timedelta:
    if not isinstance(value, timedelta):
        raise InvalidValue(argument, f"must be a timedelta, not {_type(value)}")
    if not least <= value <= MAX_TIMEOUT:
        raise InvalidValue(argument, f"must be {says} and at most {MAX_TIMEOUT.days} days")
    return round(value / _MILLISECOND) * _MILLISECOND


def number(argument: str, value: object, least: float, most: float) -> float:
    """Return a number within bounds, which NaN never is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidValue(argument, f"must be a number, not {_type(value)}")
    if not least <= value <= most:
        raise InvalidValue(argument, f"must be from {least} to {most}")
    return float(value) + 0.0  # SQLite keeps no negative zero


def statuses(value: object, argument: str = "status") -> tuple[ExecutionStatus, ...]:
    """Return one or several statuses as a tuple."""
    several: Iterable[Any] = (
        value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    )
    try:
        return tuple(dict.fromkeys(ExecutionStatus(status) for status in several))
    except ValueError:
        known = ", ".join(ExecutionStatus)
        raise InvalidValue(argument, f"must be one or several of {known}") from None


def progress(current: object, total: object, message: object, percent: object) -> ProgressInfo:
    """Return a progress; `percent` is computed where it is None, and 100 only once all is done."""
    current = integer("current", current, 0, MAX_BIG_INTEGER)
    total = integer("total", total, 0, MAX_BIG_INTEGER)
    if percent is None:
        # Floored to two digits in whole numbers: no rounding shows 100 before the end.
        percent = min(100.0, current * 10_000 // total / 100) if total else 0.0
    else:
        percent = number("percent", percent, 0, 100)
    return ProgressInfo(
        current=current,
        total=total,
        message=None if message is None else text("message", message, MAX_MESSAGE),
        percent=percent,
    )


def to_json(argument: str, value: object, max_bytes: int = MAX_JSON_BYTES) -> Json:
    """Return a value as JSON text that reads back as it went in.

    Dicts with text keys, lists, tuples, texts, numbers, bools and None; datetime, UUID, Decimal,
    Enum, dataclasses and pydantic models as pydantic serialises them. What a pydantic model holds
    is for pydantic to say: it makes lists of sets, in any order.
    """
    _check_containers(argument, value, max_bytes)
    try:
        document = _dump(value, default=lambda part: _encodable(argument, part, max_bytes))
    except (ValueError, RecursionError) as error:  # NaN, Infinity, an int beyond 4,300 digits
        raise InvalidValue(argument, f"is not JSON: {error}") from error
    if "e+" in document:
        document = _TEXT_OR_LARGE_FLOAT.sub(_spelt_out, document)
    try:
        size = len(document.encode())
    except UnicodeEncodeError as error:
        raise InvalidValue(argument, "holds a lone surrogate, which is no character") from error
    if size > max_bytes:
        raise InvalidValue(argument, f"is larger than {max_bytes} bytes of JSON")
    if "\\u0000" in document and _NUL_ESCAPE.search(document):
        raise InvalidValue(argument, "holds U+0000, which PostgreSQL cannot store")
    return Json(document)


def json_object(argument: str, value: object, max_bytes: int = MAX_JSON_BYTES) -> Json:
    """Return a JSON object; None is an empty one."""
    if value is None:
        return EMPTY
    document = to_json(argument, value, max_bytes)
    if not document.text.startswith("{"):
        raise InvalidValue(argument, f"must be a JSON object, not {_type(value)}")
    return document


def fingerprint(type: str, payload: Json | None) -> str:
    """Return the SHA-256 of type and payload, as hexadecimal digits.

    What is hashed is `{"payload":…,"type":…}` with sorted keys and no spaces, in UTF-8.
    """
    work = {"type": type, "payload": payload and payload.value}
    return hashlib.sha256(_dump(work, sort_keys=True).encode()).hexdigest()


def _dump(value: object, **options: Any) -> str:
    # ensure_ascii=False: SQLite compares the keys of stored JSON as they are spelt.
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), **options)


def _spelt_out(match: re.Match[str]) -> str:
    """1e+23 → 100000000000000000000000.0: jsonb makes an integer, another number, of the former."""
    token = match[0]
    return token if token.startswith('"') else f"{Decimal(token):f}.0"


def _check_containers(argument: str, value: object, max_bytes: int) -> None:
    """Refuse what json.dumps lets pass or trips over: keys that are no text, cycles, depth."""
    # Each container takes two bytes: an end to shared references that explode.
    budget = max_bytes // 2
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                try:
                    "".join(part)  # the quickest way to see that all keys are texts
                except TypeError:
                    key = next(key for key in part if not isinstance(key, str))
                    raise InvalidValue(
                        argument, f"has a key that is {_type(key)}, not a text"
                    ) from None
                deeper += [child for child in part.values() if type(child) not in _SCALARS]
            elif isinstance(part, list | tuple):
                deeper += [child for child in part if type(child) not in _SCALARS]
            if len(deeper) > budget:
                raise InvalidValue(argument, f"is larger than {max_bytes} bytes of JSON")
        if not deeper:
            return
        level = deeper
        budget -= len(level)
    if any(isinstance(part, dict | list | tuple) for part in level):
        raise InvalidValue(argument, f"is nested deeper than {MAX_DEPTH} levels, or in itself")


def _encodable(argument: str, part: object, max_bytes: int) -> Any:
    plain = not isinstance(part, type) and not hasattr(part, "__pydantic_serializer__")
    if is_dataclass(part) and plain:
        # Field by field, so that what is in them is checked as well.
        encoded = {each.name: getattr(part, each.name) for each in fields(part)}
        _check_containers(argument, encoded, max_bytes)
        return encoded
    if not isinstance(part, _ENCODABLE):
        raise InvalidValue(
            argument, f"holds {_type(part)}, which JSON cannot hold or would change in silence"
        )
    try:
        return to_jsonable_python(part)
    except ValueError as error:
        raise InvalidValue(argument, f"holds {_type(part)} that is not JSON: {error}") from error


def _type(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}" if value is not None else "None"


def _number(value: int) -> str:
    return str(value) if value.bit_length() < 128 else "one of that size"
