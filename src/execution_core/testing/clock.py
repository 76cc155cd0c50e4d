"""A clock that a test sets forward instead of sleeping."""

from datetime import UTC, datetime, timedelta

from ..core import validation
from ..core.errors import InvalidValue


class ExecutionClock:
    """The real time, plus what the test adds: `clock.advance(hours=1)`.

    It is the `clock` of a store: `SqlExecutionStore(engine, clock=clock)`. Like the clock of
    SQLite it returns whole milliseconds, so that a store without a clock finds what is due now.
    """

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def __call__(self) -> datetime:
        """Return the time, as an aware datetime in UTC: `clock()`."""
        return self.now

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.now}, {self._ahead} ahead>"

    @property
    def now(self) -> datetime:
        """The same time: `clock.now`."""
        real = datetime.now(UTC)
        return real - timedelta(microseconds=real.microsecond % 1000) + self._ahead

    def advance(self, duration: timedelta | None = None, **parts: float) -> None:
        """Set the clock forward: `clock.advance(hours=1)`.

        Args:
            duration: how far.
            parts: the keywords of timedelta, such as `minutes`, instead of `duration`.

        Raises:
            InvalidValue: it is not more than 0, or both are given.
        """
        if parts and duration is not None:
            raise InvalidValue("duration", "cannot be given together with keywords")
        given = timedelta(**parts) if duration is None else duration
        self._ahead += validation.duration("duration", given)
