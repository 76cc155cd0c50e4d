"""Read stored JSON as a type of the caller's."""

import json
from typing import Any, Final

from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from .problem import InvalidValue

MAX_MISFITS: Final = 5
"""How many places that do not fit an error names."""
MAX_PLACE: Final = 80
"""Characters of a place: the keys of a dict may be long."""


def read_as(name: str, execution_id: str, value: object, as_type: Any) -> Any:
    """Validate the payload or result of an execution: `read_as("payload", id, value, Order)`.

    It is validated as JSON, so that a strict model reads a datetime, a UUID or a tuple as well.

    Args:
        name: what the value is, such as `payload`.
        execution_id: the execution that it belongs to.
        value: the JSON value.
        as_type: a type that pydantic validates, or its TypeAdapter.

    Raises:
        InvalidValue: it does not fit, or pydantic cannot validate the type. The error names the
            fields and keys that do not fit, and no values.
    """
    try:
        adapter = as_type if isinstance(as_type, TypeAdapter) else TypeAdapter(as_type)
        return adapter.validate_json(json.dumps(value, default=to_jsonable_python))
    except (PydanticUserError, PydanticUndefinedAnnotation):
        reason = f"must be a type that pydantic can validate, not {as_type!r:.80}"
        raise InvalidValue("as_type", reason) from None
    except ValidationError as error:
        reason = f"of execution {execution_id} does not fit {error.title}: {_misfits(error)}"
        raise InvalidValue(name, reason) from None  # the cause would show values in tracebacks


def _misfits(error: ValidationError) -> str:
    """Return where the value does not fit, and pydantic's codes: its messages contain values."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    named = [
        f"{'.'.join(map(str, each['loc'])):.{MAX_PLACE}} ({each['type']})".strip()
        for each in found[:MAX_MISFITS]
    ]
    more = len(found) - len(named)
    return "; ".join(named) + (f" and {more} more" if more else "")
