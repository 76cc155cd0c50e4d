"""JSON values: encoding that reads back exactly, and the fingerprint of type and payload."""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from .errors import InvalidValue
from .validation import NO_NUL, NO_SURROGATE, type_name

MAX_DEPTH = 200
"""Levels of dicts and lists in a JSON value."""
MAX_JSON_BYTES = 16 * 2**20
"""Default for `max_json_bytes` of a manager: the size of one JSON value in UTF-8."""
_NUL_ESCAPE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_TEXT_OR_LARGE_FLOAT: Final = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(?<![\d.])-?[\d.]+e\+\d+', re.ASCII
)
MAX_DIGITS: Final = sys.int_info.default_max_str_digits
_TEXT_OR_LONG_INTEGER: Final = re.compile(
    rf'"[^"\\]*+(?:\\.[^"\\]*+)*+"|\d{{{MAX_DIGITS + 1},}}', re.ASCII
)
_SCALARS: Final = frozenset((str, int, float, bool, NoneType))
_ENCODABLE: Final = (date, time, timedelta, UUID, Decimal, Enum, BaseModel)


@dataclass(frozen=True, slots=True)
class Json:
    """A checked JSON value as text; `value` parses a new copy each time."""

    text: str

    @property
    def value(self) -> Any:
        """The parsed value."""
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class JsonMembers:
    """Members of a JSON object: at least one key, and the new value of each."""

    values: Mapping[str, Json]

    @property
    def text(self) -> str:
        """The JSON text of an object with only these keys and values: `{"key":value}`."""
        return "{" + ",".join(f"{_dump(k)}:{v.text}" for k, v in self.values.items()) + "}"

    @property
    def null_text(self) -> str:
        """The same object with nulls as values: the JSON merge patch that removes the keys."""
        return "{" + ",".join(f"{_dump(key)}:null" for key in self.values) + "}"


EMPTY: Final = Json("{}")


def to_json(argument: str, value: object, max_bytes: int = MAX_JSON_BYTES) -> Json:
    """Return a value as JSON text that reads back as the same value.

    Dicts with string keys, lists, tuples, strings, numbers, bools and None are accepted, and
    datetime, UUID, Decimal, Enum, dataclasses and pydantic models as pydantic serialises them.
    The fields of a pydantic model are not checked: pydantic turns a set into a list in any order.
    """
    _check_containers(argument, value, max_bytes)
    try:
        document = _dump(value, default=lambda part: _encodable(argument, part, max_bytes))
    except InvalidValue:
        raise
    except (ValueError, RecursionError) as error:  # NaN, Infinity, an int beyond 4,300 digits
        raise InvalidValue(argument, f"is not valid JSON: {error}") from error
    if "e+" in document:
        document = _TEXT_OR_LARGE_FLOAT.sub(_expand_exponent, document)
    try:
        size = len(document.encode())
    except UnicodeEncodeError as error:
        raise InvalidValue(argument, NO_SURROGATE) from error
    if size > max_bytes:
        raise InvalidValue(argument, _too_large(max_bytes))
    if "\\u0000" in document and _NUL_ESCAPE.search(document):
        raise InvalidValue(argument, NO_NUL)
    if not 0 < sys.get_int_max_str_digits() <= MAX_DIGITS and any(
        not each[0].startswith('"') for each in _TEXT_OR_LONG_INTEGER.finditer(document)
    ):
        raise InvalidValue(
            argument, f"contains an integer of over {MAX_DIGITS} digits, which Python does not read"
        )
    return Json(document)


def json_object(argument: str, value: object, max_bytes: int) -> Json:
    """Return a JSON object as text; None becomes an empty object."""
    if value is None:
        return EMPTY
    document = to_json(argument, value, max_bytes)
    if not document.text.startswith("{"):
        raise InvalidValue(argument, f"must be a JSON object, not {type_name(value)}")
    return document


def fingerprint(type: str, payload: Json | None) -> str:
    """Return the SHA-256 of type and payload, as hexadecimal digits.

    The hashed text is `{"payload":…,"type":…}` with sorted keys and no spaces, in UTF-8.
    """
    document = canonical({"type": type, "payload": payload and payload.value})
    return hashlib.sha256(document.encode()).hexdigest()


def canonical(value: object) -> str:
    """Return the same text for equal JSON values. 1, 1.0 and true differ here, not in Python."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _dump(value: object, **options: Any) -> str:
    # ensure_ascii=False: SQLite compares keys of JSON as text, so an escaped key would not match.
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), **options)


def _expand_exponent(match: re.Match[str]) -> str:
    """Return 1e+23 as 100000000000000000000000.0: jsonb would turn 1e+23 into an integer."""
    token = match[0]
    return token if token.startswith('"') else f"{Decimal(token):f}.0"


def _check_containers(argument: str, value: object, max_bytes: int) -> None:
    """Refuse what json.dumps converts or cannot encode: non-string keys, cycles, deep nesting."""
    # Each container takes at least two bytes. Shared references can multiply without this limit, so
    # an object is visited once for each level, with the number of its occurrences.
    budget = max_bytes // 2
    level = {id(value): (value, 1)}
    for _ in range(MAX_DEPTH):
        deeper: dict[int, tuple[Any, int]] = {}
        for part, times in level.values():
            for child in _children(argument, part):
                if type(child) not in _SCALARS:
                    known = deeper.get(id(child))
                    deeper[id(child)] = child, times + (known[1] if known else 0)
        if not deeper:
            return
        level = deeper
        budget -= sum(times for _, times in level.values())
        if budget < 0:
            raise InvalidValue(argument, _too_large(max_bytes))
    if any(isinstance(part, dict | list | tuple) for part, _ in level.values()):
        raise InvalidValue(
            argument, f"is nested deeper than {MAX_DEPTH} levels, or contains itself"
        )


def _children(argument: str, part: object) -> Iterable[Any]:
    if not isinstance(part, dict):
        return part if isinstance(part, list | tuple) else ()
    try:
        "".join(part)  # the fastest check that all keys are strings
    except TypeError:
        key = next(key for key in part if not isinstance(key, str))
        raise InvalidValue(
            argument, f"must have string keys, and one is {type_name(key)}"
        ) from None
    return part.values()


def _encodable(argument: str, part: object, max_bytes: int) -> Any:
    by_pydantic = isinstance(part, type) or hasattr(part, "__pydantic_serializer__")
    if is_dataclass(part) and not by_pydantic:
        # Field by field, so that the fields are checked as well.
        encoded = {each.name: getattr(part, each.name) for each in fields(part)}
        _check_containers(argument, encoded, max_bytes)
        return encoded
    if not isinstance(part, _ENCODABLE):
        raise InvalidValue(
            argument, f"contains {type_name(part)}, which is not JSON-serialisable without loss"
        )
    try:
        return to_jsonable_python(part)
    except ValueError as error:
        raise InvalidValue(
            argument, f"contains {type_name(part)} that is not valid JSON: {error}"
        ) from error


def _too_large(max_bytes: int) -> str:
    return f"is larger than {max_bytes} bytes of JSON"
