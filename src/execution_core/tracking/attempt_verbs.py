"""What the sync and the async attempt share: the verbs of a block, with one docstring each.

A verb returns what `_run` makes of its steps: the result, or a coroutine that returns it.
"""

from copy import copy
from typing import Any, Generic, Self, TypeVar, cast

from ..core import transitions
from ..core.models import LogLevel
from ..core.steps import Steps
from ..core.store import store_within
from .attempt_state import AttemptState

NoneT = TypeVar("NoneT")
TransactionT = TypeVar("TransactionT")


class AttemptVerbs(AttemptState, Generic[NoneT, TransactionT]):
    """The verbs of an attempt. Those of an `AsyncAttempt` are awaited."""

    def _run(self, steps: Steps[Any]) -> Any:
        raise NotImplementedError

    def update_progress(self, current: int, total: int, *, message: str | None = None) -> NoneT:
        """Replace the progress: `attempt.update_progress(50, 100, message="half way")`.

        Args:
            current: how many units are done.
            total: how many units there are; 0 while that is unknown.
            message: a text for readers, up to 10,000 characters.
        """
        return cast("NoneT", self._run(self._write_steps(self._progress(current, total, message))))

    def checkpoint(self, key: str, value: Any) -> NoneT:
        """Set one checkpoint: `attempt.checkpoint("last_index", 49)`.

        The key has 1 to 255 characters. The value, any JSON value, replaces the old one.
        """
        return cast("NoneT", self._run(self._write_steps(self._checkpoint(key, value))))

    def advance(
        self, current: int, total: int, *, key: str, value: Any, message: str | None = None
    ) -> NoneT:
        """Update progress and a checkpoint together: `attempt.advance(5, 9, key="i", value=4)`.

        As `update_progress` and `checkpoint` do, with their arguments, in one statement.
        """
        return cast(
            "NoneT",
            self._run(self._write_steps(self._advance(current, total, key, value, message))),
        )

    def heartbeat(self) -> NoneT:
        """Show that the attempt is alive: `attempt.heartbeat()`."""
        return cast("NoneT", self._run(self._write_steps(transitions.heartbeat(self.number))))

    def log(
        self, message: str, *, level: LogLevel | str = LogLevel.INFO, data: Any = None
    ) -> NoneT:
        """Add an entry to the log: `attempt.log("skipped a row", level="warning")`.

        `ExecutionLogHandler` does this for the records of `logging`.

        Args:
            message: the text; characters that cannot be stored are replaced, and it is cut after
                10,000 characters.
            level: debug, info, warning, error or critical.
            data: any JSON value.
        """
        return cast("NoneT", self._run(self._log_steps(self._entry(message, level, data))))

    def within(self, transaction: TransactionT) -> Self:
        """Write in the caller's transaction: `attempt.within(session).checkpoint("done", 7)`.

        Writes through the returned attempt commit or roll back with the caller's own rows. It has
        checkpoints of its own. The block itself is unaffected.

        Args:
            transaction: an SQLAlchemy Connection or Session; with asyncio AsyncConnection or
                AsyncSession.

        Raises:
            InvalidValue: it is neither.
            NotImplementedError: the store cannot join a transaction.
        """
        inside = copy(self)
        own = {"_store": store_within(self._store, transaction), "_entered": True}
        vars(inside).update(own, _checkpoints=dict(self._checkpoints))
        return inside
