"""The chunks of a batch: each is done in one transaction, which its position commits with."""

from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from enum import Enum
from typing import Any, Protocol, TypeVar

from ..core.errors import InvalidValue
from .attempt_state import AttemptState
from .iteration import CheckpointedIteration

T = TypeVar("T")
OpenedT_co = TypeVar("OpenedT_co", covariant=True)


class Begins(Protocol[OpenedT_co]):
    """Begins transactions: SQLAlchemy's sessionmaker or Engine."""

    def begin(self) -> AbstractContextManager[OpenedT_co]:
        """Begin a transaction that ends with the block of `with`."""


class AsyncBegins(Protocol[OpenedT_co]):
    """Begins transactions: SQLAlchemy's async_sessionmaker or AsyncEngine."""

    def begin(self) -> AbstractAsyncContextManager[OpenedT_co]:
        """Begin a transaction that ends with the block of `async with`."""


class ChunkStage(Enum):
    """How far a chunk is, and why it cannot begin."""

    WAITING = "has not begun"
    OPEN = "is open already"
    UNKNOWN = (
        "may have been committed although its commit raised an error: let the error leave the loop,"
        " so that the next attempt resumes with the first chunk that was not committed"
    )
    COMMITTED = "is committed: ask the loop for the next one"


class ChunkState(list[T]):
    """A list of the items of one chunk, and the position that commits with them."""

    def __init__(
        self, items: list[T], attempt: AttemptState[Any, Any], iteration: CheckpointedIteration
    ) -> None:
        super().__init__(items)
        self._attempt, self._iteration = attempt, iteration
        self._count = len(items)  # the caller may change the list
        self._position = iteration.position_after(self._count)
        self._state = ChunkStage.WAITING

    def check_committed(self) -> None:
        """Raise if the loop asks for the next chunk, but this one is not done."""
        if self._state is not ChunkStage.COMMITTED:
            raise RuntimeError(
                f"{self._name()} was not committed, so the next one cannot begin:"
                " do its work in the block of `chunk.begin(...)`, and let its errors leave the loop"
            )

    def _begin(self, factory: Any, protocol: str) -> Any:
        if self._state is not ChunkStage.WAITING:
            raise RuntimeError(f"{self._name()} {self._state.value}")
        self._attempt._check_own_transactions()  # noqa: SLF001
        begun = factory.begin() if callable(getattr(factory, "begin", None)) else None
        if not hasattr(begun, protocol):
            a_sync = "an async_sessionmaker or an AsyncEngine"
            expected = a_sync if protocol == "__aenter__" else "a sessionmaker or an Engine"
            raise InvalidValue("factory", f"must be {expected}, not {type(factory).__name__}")
        return begun

    @contextmanager
    def _rollback(self) -> Iterator[None]:
        """Let the chunk begin again after an error before its commit."""
        self._state = ChunkStage.OPEN
        try:
            yield
        except BaseException:
            self._state = ChunkStage.WAITING
            raise

    def _join(self, transaction: Any) -> Any:
        inside = self._attempt.within(transaction)
        store = inside._store  # noqa: SLF001
        if getattr(store, "single_writer", False):  # its end will write, so no other write can
            self._attempt._joined.add(store)  # noqa: SLF001
        return inside

    def _commit(self) -> None:
        self._iteration.chunk_done(self._count)
        position = self._position["key"], self._position["value"]
        self._attempt._checkpoints.update([position])  # noqa: SLF001 - as its own write would
        self._state = ChunkStage.COMMITTED

    def _name(self) -> str:
        end = self._position["current"]
        return f"The chunk of items {end - self._count} to {end - 1}"


class Chunk(ChunkState[T]):
    """A list of items to be done in one transaction: `with chunk.begin(Session) as session: ...`.

    See `Attempt.chunks`.
    """

    @contextmanager
    def begin(self, factory: Begins[OpenedT_co]) -> Iterator[OpenedT_co]:
        """Begin a transaction: `with chunk.begin(Session) as session: session.add_all(...)`.

        Leaving the block commits its rows, the progress and the checkpoint together. An exception
        rolls all of them back, and the same chunk may begin again, unless the commit itself failed.

        Args:
            factory: a sessionmaker or an Engine of the database of the execution.

        Raises:
            AttemptLost: the attempt does not own the execution any more; the rows are rolled back.
            InvalidValue: the factory is neither.
            RuntimeError: the chunk is open or committed already, or that is unknown.
        """
        with self._begin(factory, "__enter__") as transaction, self._rollback():
            inside = self._join(transaction)
            yield transaction
            inside.advance(**self._position)
            self._state = ChunkStage.UNKNOWN
        self._commit()


class AsyncChunk(ChunkState[T]):
    """A list of items to be done in one transaction: `async with chunk.begin(Session) as session`.

    See `AsyncAttempt.chunks`.
    """

    @asynccontextmanager
    async def begin(self, factory: AsyncBegins[OpenedT_co]) -> AsyncIterator[OpenedT_co]:
        """Begin a transaction: `async with chunk.begin(Session) as session: ...`.

        Leaving the block commits its rows, the progress and the checkpoint together. An exception
        rolls all of them back, and the same chunk may begin again, unless the commit itself failed.

        Args:
            factory: an async_sessionmaker or an AsyncEngine of the database of the execution.

        Raises:
            AttemptLost: the attempt does not own the execution any more; the rows are rolled back.
            InvalidValue: the factory is neither.
            RuntimeError: the chunk is open or committed already, or that is unknown.
        """
        async with self._begin(factory, "__aenter__") as transaction:
            with self._rollback():
                inside = self._join(transaction)
                yield transaction
                await inside.advance(**self._position)
                self._state = ChunkStage.UNKNOWN
        self._commit()
