"""What an attempt has written in transactions of its caller's, which decide whether it counts."""

from collections.abc import Callable
from typing import Any

from ..core.models import ExecutionStatus


class JoinedWrites:
    """The open transactions that an attempt has written in, and the end that it wrote there.

    A write of the attempt outside such a transaction would wait for it, while the transaction
    waits for the caller, who waits for the write.
    """

    ended: ExecutionStatus | None = None
    """The status with which the attempt ended itself before the end of its block."""

    is_ending = False
    """Whether the write is under way that ends the attempt."""

    def __init__(self) -> None:
        self._open: list[tuple[Any, Any]] = []

    def add(self, store: Any) -> None:
        """Note a write through a store that runs in the caller's transaction."""
        transaction = _transaction_of(store)
        if transaction is not None and all(each[1] is not transaction for each in self._open):
            self._open.append((store, transaction))

    def unless_ended(self, call: Callable[[], object]) -> None:
        """Call a function, unless the attempt ends or has ended itself: then it is not lost."""
        if self.ended is None and not self.is_ending:
            call()

    @property
    def last_store(self) -> Any:
        """The store of the last transaction that is open."""
        return self._open[-1][0]

    def is_open(self) -> bool:
        """Return whether one of the transactions has not ended yet."""
        self._open = [each for each in self._open if _transaction_of(each[0]) is each[1]]
        return bool(self._open)


def _transaction_of(store: Any) -> Any:
    """Return the transaction that is open on the caller's connection or session, if any."""
    find = getattr(store, "current_transaction", None)
    return None if find is None else find()
