"""The options of `run`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ...core.backoff import Backoff


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The command and the options of `run`."""

    command: Sequence[str]
    url: str
    type: str
    payload: Any
    key: str | None
    max_attempts: int
    timeout: timedelta | None
    backoff: Backoff | None
    kill_after: timedelta
    heartbeat: timedelta
    stalled_after: timedelta | None
    record_for: timedelta
