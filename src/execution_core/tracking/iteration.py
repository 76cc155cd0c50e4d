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


class CheckpointedIteration:
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

    def item_done(self) -> bool:
        """Count an item; tell whether to write."""
        self.done += 1
        return self.done - self._written >= self._every

    def exhausted(self) -> bool:
        """Tell whether there is anything left to write at the end."""
        learnt = self._total is None and self.done > self._begun
        if learnt:
            self._total = self.done
        return learnt or self.done > self._written

    def progress_args(self) -> dict[str, Any]:
        """Return the arguments of the `advance` that records the position."""
        self._written = self.done
        total = self._total or 0
        return {"current": self.done, "total": total, "key": self._key, "value": self.done - 1}
