"""What the sync and the async manager share: every verb, with its one signature and docstring.

Those that create or change one execution are in `transition_verbs`, those that read in
`read_verbs`, those for many executions with their own values in `batch_verbs`.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, Self, TypeVar, cast

from ..core import transitions, validation
from ..core.backoff import Backoff
from ..core.models import Execution
from ..core.selections import Statuses, check_batch, check_prune_request
from ..core.store import store_within
from . import verbs
from .attempt_options import Exceptions, check_options
from .attempt_state import AttemptState
from .batch_verbs import AnswersT, BatchVerbs
from .decorator import TrackedOptions
from .read_verbs import ChildrenT, CountT, EntriesT, HistoryT, ManyT, ReadVerbs, RecordsT
from .transition_verbs import EntryT, FoundT, OneT, TransitionVerbs

NoneT = TypeVar("NoneT")
AttemptT = TypeVar("AttemptT", bound=AttemptState[Any, Any])
TransactionT = TypeVar("TransactionT")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class ManagerVerbs(
    TransitionVerbs[OneT, FoundT, EntryT],
    ReadVerbs[OneT, FoundT, ManyT, EntriesT, CountT, ChildrenT, HistoryT, RecordsT],
    BatchVerbs[ManyT, AnswersT],
    Generic[
        OneT,
        FoundT,
        ManyT,
        AnswersT,
        EntryT,
        EntriesT,
        CountT,
        ChildrenT,
        HistoryT,
        RecordsT,
        NoneT,
        AttemptT,
        TransactionT,
    ],
):
    """The verbs of a manager. Those of an `AsyncExecutionManager` are awaited."""

    # Defined by the sync and the async manager.
    _attempt_class: type[AttemptT]
    _track: Callable[[TrackedOptions, Callable[[str], AttemptT], Callable[..., Any]], Any]

    def claim(self, type: str | None = None, *, limit: int = 1, worker: str | None = None) -> ManyT:
        """Start waiting executions, the longest due first: `manager.claim("mail", limit=10)`.

        From pending or retrying, once due. Concurrent callers never get the same execution. On
        PostgreSQL, rows locked by other transactions are skipped. Claim only what you process
        concurrently: heartbeats start when the block of `attempt` is entered.

        Args:
            type: only this type; by default any.
            limit: the maximum number of executions, 1 to 10,000.
            worker: the name of the worker, 1 to 255 characters.

        Returns:
            The started executions, ordered by id, each to be passed to `attempt`; an empty list if
            none is due.

        Raises:
            InvalidValue: an argument is invalid.
        """
        batch = check_batch(transitions.claim(worker), type, limit)
        return cast("ManyT", self._store.update_many(batch))

    def sweep(
        self,
        *,
        stalled_after: timedelta | None = None,
        type: str | None = None,
        retry: bool = False,
        limit: int = 100,
    ) -> ManyT:
        """Time out abandoned executions: `manager.sweep(stalled_after=timedelta(hours=1))`.

        Running ones that are past their deadline (error code `timeout`) or, with `stalled_after`,
        without a heartbeat for that long (error code `stalled`). A start, a progress update and a
        checkpoint count as heartbeats. It also ends what awaits children that have all finished
        (see `finish_with_children`), of any type.

        Args:
            stalled_after: several heartbeat intervals.
            type: only this type; by default any.
            retry: allow another attempt of those that have one left: they become retrying.
            limit: the maximum number of executions, 1 to 10,000: one statement.

        Returns:
            The executions that it timed out, ordered by id. If there are `limit` of them, there
            may be more.

        Raises:
            InvalidValue: an argument is invalid.
        """
        batch = check_batch(transitions.sweep(stalled_after, retry=retry), type, limit)
        return cast("ManyT", self._run(verbs.sweep(self._store, batch, joined=self._joined)))

    def cancel_tree(self, id: str, reason: str | None = None, *, by: str | None = None) -> CountT:
        """Cancel it and everything below it: `manager.cancel_tree(id, "customer withdrew")`.

        Its children, their children, and so on, as `cancel` does. What has finished stays as it is.
        A running one learns it at its next write or heartbeat. A child whose creation has not been
        committed yet stays live.

        Args:
            id: the id of the execution, which may have finished.
            reason: a text, kept as `metadata["cancellation_reason"]` of each.
            by: who cancels, 1 to 255 characters, for the history.

        Returns:
            How many executions it cancelled.

        Raises:
            ExecutionNotFound: there is no such execution.
        """
        actor = None if by is None else validation.name("by", by)
        transition = replace(transitions.cancel(reason), actor=actor)
        steps = verbs.cancel_tree(self._store, id, transition, joined=self._joined)
        return cast("CountT", self._run(steps))

    def attempt(
        self,
        id: str | Execution,
        *,
        worker: str | None = None,
        retry_on: Exceptions = (),
        backoff: Backoff | None = None,
        heartbeat: timedelta | None = None,
        cancel_task: bool = False,
    ) -> AttemptT:
        """Make an attempt: `with manager.attempt(id, retry_on=TimeoutError) as attempt: ...`.

        Entering the block starts the execution. Leaving it completes the execution with
        `attempt.result`. An exception that leaves the block fails the execution and is raised
        again. KeyboardInterrupt, SystemExit and asyncio.CancelledError are failures with the code
        `interrupted`, always retryable.

        Args:
            id: the id of an execution; or an execution that `claim` or `start` returned, which is
                not started again.
            worker: the name of the worker, 1 to 255 characters.
            retry_on: the exceptions after which another attempt may help, as in `except`; an
                exception group counts if all of its exceptions do.
            backoff: the delay before `claim` may start the next attempt.
            heartbeat: the interval at which to send heartbeats in the background. Not available
                inside a transaction of the caller's, nor with in-memory SQLite.
            cancel_task: cancel the task in the block when a heartbeat finds that the attempt is
                lost; the block then raises `AttemptLost`. With asyncio only; a thread can look at
                `attempt.lost`, or wait on it.

        Returns:
            The attempt, for `with`. Entering its block raises what `start` raises, or
            `AttemptLost` if another attempt has taken over a started execution. So do its writes.

        Raises:
            InvalidValue: an argument is invalid.
        """
        options = check_options(
            id,
            worker=worker,
            retry_on=retry_on,
            backoff=backoff,
            heartbeat=heartbeat,
            cancel_task=cancel_task,
            can_cancel_task=self._attempt_class.can_cancel_task,
            joined=self._joined,
            shares_connection=getattr(self._store, "shares_connection", False),
            max_bytes=self._max_bytes,
        )
        return self._attempt_class(self._store, options)

    def tracked(
        self,
        type: str,
        *,
        idempotency_key: Callable[..., str | None] | None = None,
        payload: Callable[..., Any] | None = None,
        max_attempts: int = 1,
        timeout: timedelta | None = None,
        worker: str | None = None,
        retry_on: Exceptions = (),
        backoff: Backoff | None = None,
        heartbeat: timedelta | None = None,
    ) -> Callable[[FunctionT], FunctionT]:
        """Make each call of a function an execution: `@manager.tracked("mail", max_attempts=3)`.

        A call creates the execution, makes its attempts one after the other, and returns the
        stored result as the type in the function's return annotation. With a key, a later call
        returns that result without running; if the execution failed or timed out, it makes the
        next attempt. A function with a keyword parameter `attempt` gets the attempt (give it a
        default, for type checkers).

        The result is returned as JSON has it if there is no annotation, or it is Any, None or an
        Iterable, cannot be resolved, or is a type that pydantic does not know.

        Args:
            type: the kind of work, 1 to 255 characters.
            idempotency_key: computes the key from the function's arguments.
            payload: computes the payload from the function's arguments.
            max_attempts: the maximum number of attempts.
            timeout: the maximum run time of one attempt.
            worker: the name of the worker, 1 to 255 characters.
            retry_on: the exceptions after which to try again, as in `except`.
            backoff: the delay before each further attempt; none by default.
            heartbeat: the interval at which to send heartbeats in the background.

        Returns:
            A decorator. The decorated function raises what the function raises, and
            `AlreadyRunning`, `AttemptLost`, `MaxRetriesExceeded`, `InvalidValue` if the result does
            not fit the annotation, or `InvalidStateTransition` if the execution was cancelled.

        Raises:
            InvalidValue: an argument is invalid, or the function is async and the manager is not,
                or the reverse.
        """
        options = TrackedOptions(
            type=type,
            idempotency_key=idempotency_key,
            payload=payload,
            max_attempts=max_attempts,
            timeout=timeout,
            max_bytes=self._max_bytes,
        )

        def new_attempt(id: str) -> AttemptT:
            return self.attempt(
                id, worker=worker, retry_on=retry_on, backoff=backoff, heartbeat=heartbeat
            )

        new_attempt(validation.new_id())  # refuses invalid options now, not at the first call
        return lambda function: self._track(options, new_attempt, function)

    def delete(self, id: str) -> NoneT:
        """Delete an execution in any status, with its history and log: `manager.delete(id)`.

        Its children and replays lose the link to it.
        """
        return cast("NoneT", self._run(verbs.delete(self._store, id)))

    def prune(
        self,
        older_than: timedelta,
        *,
        status: Statuses = None,
        type: str | None = None,
        keys_older_than: timedelta | None = None,
        limit: int = 1000,
    ) -> CountT:
        """Delete executions that finished long ago: `manager.prune(timedelta(days=30))`.

        With their history and log, the earliest finished first. It never deletes a live execution
        or an ancestor of one. It skips rows that other transactions are changing, and rows whose
        children or replays they are changing: the next call deletes those. An idempotency key is
        deleted with its execution, and no longer prevents a repeat.

        Args:
            older_than: the minimum time since the execution finished.
            status: one or several of completed, failed, timed_out and cancelled; by default all.
            type: only this type; by default any.
            keys_older_than: the same as `older_than`, for executions with an idempotency key.
            limit: the maximum number of executions, 1 to 10,000: one statement.

        Returns:
            The number of deleted executions. If it is `limit`, there may be more: call again.

        Raises:
            InvalidValue: an argument is invalid, such as a status that is not final.
        """
        request = check_prune_request(older_than, status, type, keys_older_than, limit)
        return cast("CountT", self._store.prune(request))

    def within(self, transaction: TransactionT) -> Self:
        """Join the caller's transaction: `manager.within(session).create("ship")`.

        The returned manager's writes commit or roll back with the caller's own rows. It never
        commits, and a refusal leaves the transaction usable.

        Args:
            transaction: an SQLAlchemy Connection or Session; with asyncio AsyncConnection or
                AsyncSession.

        Raises:
            InvalidValue: it is neither.
            NotImplementedError: the store cannot join a transaction.
        """
        inside = copy(self)
        inside._store = store_within(self._store, transaction)  # noqa: SLF001
        inside._joined = True  # noqa: SLF001
        return inside

    def close(self) -> NoneT:
        """Close the connections of a manager that `connect` returned: `manager.close()`.

        An engine of the caller's own stays open.
        """
        return cast("NoneT", self._run(verbs.close(self._store)))
