"""JSON values: encoding that reads back exactly, and the fingerprint of an execution's work."""

import hashlib
import json
import re
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
from .validation import type_name

MAX_DEPTH = 200
"""Levels of dicts and lists in a JSON value."""
MAX_JSON_BYTES = 16 * 2**20
"""A JSON value in UTF-8, where a manager is not told otherwise."""
_NUL_ESCAPE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_TEXT_OR_LARGE_FLOAT: Final = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(?<![\d.])-?[\d.]+e\+\d+', re.ASCII
)
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
class JsonMember:
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


def to_json(argument: str, value: object, max_bytes: int = MAX_JSON_BYTES) -> Json:
    """Return a value as JSON text that reads back as it went in.

    Dicts with text keys, lists, tuples, texts, numbers, bools and None; datetime, UUID, Decimal,
    Enum, dataclasses and pydantic models as pydantic serialises them. What a pydantic model holds
    is for pydantic to say: it makes lists of sets, in any order.
    """
    _check_containers(argument, value, max_bytes)
    try:
        document = _dump(value, default=lambda part: _encodable(argument, part, max_bytes))
    except InvalidValue:
        raise
    except (ValueError, RecursionError) as error:  # NaN, Infinity, an int beyond 4,300 digits
        raise InvalidValue(argument, f"is not JSON: {error}") from error
    if "e+" in document:
        document = _TEXT_OR_LARGE_FLOAT.sub(_expand_exponent, document)
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
        raise InvalidValue(argument, f"must be a JSON object, not {type_name(value)}")
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


def _expand_exponent(match: re.Match[str]) -> str:
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
                        argument, f"has a key that is {type_name(key)}, not a text"
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
            argument, f"holds {type_name(part)}, which JSON cannot hold or would change in silence"
        )
    try:
        return to_jsonable_python(part)
    except ValueError as error:
        raise InvalidValue(
            argument, f"holds {type_name(part)} that is not JSON: {error}"
        ) from error
