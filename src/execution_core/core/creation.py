"""New executions: how a request becomes one, and whether it repeats an earlier request."""

import logging
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypedDict

from pydantic import BaseModel

from . import json_values, validation
from .errors import IdempotencyConflict, InvalidStateTransition, InvalidValue
from .json_values import Json, canonical
from .models import CANCELLATION_REASON, Execution
from .state_machine import CANCELLED, FINISHED

logger: Final = logging.getLogger("execution_core")

MAX_TRIES: Final = 10
"""How often to try when the conflicting row or transaction is gone before it can be read."""


@dataclass(frozen=True, slots=True)
class NewExecution:
    """A new execution with checked values, not stored yet: `store.create(new)`."""

    id: str
    type: str
    payload: Json | None
    max_attempts: int
    timeout: timedelta | None
    idempotency_key: str | None
    fingerprint: str | None
    parent_id: str | None
    replay_of: str | None
    metadata: Json
    start_after: timedelta | None
    checkpoints: Json
    actor: str | None
    """Who creates it, for the history of a store that has one."""

    @property
    def needs_live_parent(self) -> bool:
        """Whether its parent must be live: not so for a replay, which repeats finished work."""
        return self.parent_id is not None and self.replay_of is None

    def apply(self, now: datetime) -> Execution:
        """Return the execution to store, as created at `now`: for stores without SQL."""
        return Execution(
            id=self.id,
            type=self.type,
            payload=self.payload and self.payload.value,
            max_attempts=self.max_attempts,
            created_at=now,
            updated_at=now,
            timeout=self.timeout,
            idempotency_key=self.idempotency_key,
            fingerprint=self.fingerprint,
            parent_id=self.parent_id,
            replay_of=self.replay_of,
            metadata=self.metadata.value,
            checkpoints=self.checkpoints.value,
            due_at=now + (self.start_after or timedelta(0)),
        )


class CreateOptions(TypedDict, total=False):
    """The keyword arguments of `create`, for type checkers."""

    max_attempts: int
    timeout: timedelta | None
    idempotency_key: str | None
    parent_id: str | None
    metadata: dict[str, Any] | None
    start_after: timedelta | None


def new_execution(
    type: str | BaseModel,
    payload: object = None,
    *,
    max_attempts: int = 1,
    timeout: timedelta | None = None,
    idempotency_key: str | None = None,
    parent_id: str | None = None,
    metadata: object = None,
    start_after: timedelta | None = None,
    max_bytes: int,
    replay_of: str | None = None,
    checkpoints: object = None,
    actor: str | None = None,
) -> NewExecution:
    """Check the arguments of `create` and build the new execution."""
    if isinstance(type, BaseModel):
        if payload is not None:
            raise InvalidValue("payload", "must not be given beside a model, which is the payload")
        type, payload = type.__class__.__name__, type
    type = validation.name("type", type)
    checked = None if payload is None else json_values.to_json("payload", payload, max_bytes)
    key = None if idempotency_key is None else validation.name("idempotency_key", idempotency_key)
    return NewExecution(
        id=validation.new_id(),
        type=type,
        payload=checked,
        max_attempts=validation.integer("max_attempts", max_attempts, 1, validation.MAX_INTEGER),
        timeout=None if timeout is None else validation.duration("timeout", timeout),
        idempotency_key=key,
        fingerprint=None if key is None else json_values.fingerprint(type, checked),
        parent_id=None if parent_id is None else validation.execution_id(parent_id),
        replay_of=replay_of,
        metadata=json_values.json_object("metadata", metadata, max_bytes),
        # Each of them was within the limit.
        checkpoints=json_values.json_object("checkpoints", checkpoints, sys.maxsize),
        actor=actor,
        start_after=None if start_after is None else validation.delay("start_after", start_after),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """The checked arguments of `replay`."""

    payload: object
    """`...` is the payload of the finished execution."""
    keep_checkpoints: bool
    actor: str | None
    max_bytes: int


def new_replay(execution: Execution, options: ReplayOptions) -> NewExecution:
    """Build the new execution that repeats a finished one."""
    if execution.status not in FINISHED:
        raise InvalidStateTransition(execution.id, "replay", execution.status, None, FINISHED)
    metadata = dict(execution.metadata)
    if execution.status is CANCELLED:
        metadata.pop(CANCELLATION_REASON, None)
    return new_execution(
        execution.type,
        execution.payload if options.payload is ... else options.payload,
        max_attempts=execution.max_attempts,
        timeout=execution.timeout,
        idempotency_key=None,
        parent_id=execution.parent_id,
        metadata=metadata,
        start_after=None,
        max_bytes=options.max_bytes,
        replay_of=execution.id,
        checkpoints=execution.checkpoints if options.keep_checkpoints else None,
        actor=options.actor,
    )


def check_same_work(new: NewExecution, existing: Execution) -> Execution:
    """Return the execution that holds the key of a new one, or raise if the work differs.

    Other options than its own are not applied; a warning says so.
    """
    payload = None if existing.payload is None else Json(canonical(existing.payload))
    # A row inserted by manual SQL may have a key and no fingerprint.
    held = existing.fingerprint or json_values.fingerprint(existing.type, payload)
    if held == new.fingerprint:
        _warn_about_options(new, existing)
        return existing
    # A payload may be stored with a change that does not count: jsonb keeps -0.0 as 0.0.
    same_payload = held == json_values.fingerprint(existing.type, new.payload) or (
        canonical(existing.payload) == canonical(new.payload and new.payload.value)
    )
    differs = [
        name
        for name, same in (("type", existing.type == new.type), ("payload", same_payload))
        if not same
    ]
    raise IdempotencyConflict(
        existing.idempotency_key or "", existing.id, " and ".join(differs) or "fingerprint"
    )


def _warn_about_options(new: NewExecution, existing: Execution) -> None:
    for name in ("max_attempts", "timeout"):
        asked, kept = getattr(new, name), getattr(existing, name)
        grown = name == "max_attempts" and asked <= kept  # by `retry` or `release`, perhaps
        if asked is not None and asked != kept and not grown:
            logger.warning(
                "Execution %s exists under the idempotency key %r and keeps %s=%s: %s is ignored",
                existing.id,
                existing.idempotency_key,
                name,
                kept,
                asked,
            )
