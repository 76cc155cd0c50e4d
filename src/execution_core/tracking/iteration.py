"""An iteration that resumes after its last checkpoint."""

from collections.abc import Mapping, Sized
from typing import Any

from ..core import validation
from ..core.errors import InvalidValue


def _length(items: object) -> int | None:
    try:
        return len(items) if isinstance(items, Sized) else None
    except OverflowError:  # of range(10**20)
        return None


class Walk:
    """How far an iteration is, and when that is to be written."""

    def __init__(self, items: object, key: str, every: int, checkpoints: Mapping[str, Any]) -> None:
        self._key = validation.name("checkpoint", key)
        self._every = validation.integer("every", every, 1, validation.MAX_INTEGER)
        self._total = _length(items)
        self.done = 0
        if key in checkpoints:
            last = checkpoints[key]
            whole = isinstance(last, int) and not isinstance(last, bool)
            if not whole or not 0 <= last < validation.MAX_BIG_INTEGER:
                raise InvalidValue("checkpoint", f"{key!r} holds {last!r:.80}, which is no index")
            self.done = last + 1
        self._begun = self._written = self.done

    def finished_one(self) -> bool:
        """Count an item; tell whether to write."""
        self.done += 1
        return self.done - self._written >= self._every

    def finished_all(self) -> bool:
        """Tell whether there is anything left to write at the end."""
        learnt = self._total is None and self.done > self._begun
        if learnt:
            self._total = self.done
        return learnt or self.done > self._written

    def position(self) -> tuple[int, int, str, int]:
        """Return what to advance to: current, total, key and value."""
        self._written = self.done
        return self.done, self._total or 0, self._key, self.done - 1
