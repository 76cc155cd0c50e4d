"""The verbs of the sync and the async manager that read.

A verb returns the result of the store or of its steps, or a coroutine that returns it: the type
parameters say which.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, TypeVar, Unpack, cast

from ..core import validation
from ..core.errors import InvalidValue
from ..core.selections import Conditions, LogPage, Page, Selection, check_bounds, check_selection
from ..core.steps import Steps
from . import verbs
from .waiting import Waiter

OneT = TypeVar("OneT")
FoundT = TypeVar("FoundT")
ManyT = TypeVar("ManyT")
EntriesT = TypeVar("EntriesT")
CountT = TypeVar("CountT")
ChildrenT = TypeVar("ChildrenT")
HistoryT = TypeVar("HistoryT")
RecordsT = TypeVar("RecordsT")


class ReadVerbs(
    Generic[OneT, FoundT, ManyT, EntriesT, CountT, ChildrenT, HistoryT, RecordsT],
):
    """The verbs that read executions, their logs and their history."""

    _store: Any
    _joined: bool
    # Defined by the sync and the async manager.
    _run: Callable[[Steps[Any]], Any]
    _waiter_class: type[Waiter]

    def get(self, id: str) -> OneT:
        """Read one execution: `manager.get(id).status`.

        Raises ExecutionNotFound if there is none, also if the id is not a UUID.
        """
        return cast("OneT", self._run(verbs.get(self._store, id)))

    def find_by_idempotency_key(self, key: str) -> FoundT:
        """Return the holder of a key, or None: `manager.find_by_idempotency_key("ship-7")`."""
        key = validation.name("key", key)
        return cast("FoundT", self._store.find_by_idempotency_key(key))

    def list(
        self,
        *,
        limit: int = 100,
        before: str | None = None,
        after: str | None = None,
        oldest_first: bool = False,
        **conditions: Unpack[Conditions],
    ) -> ManyT:
        """Return executions, newest first: `manager.list(status="failed", before=last.id)`.

        Args:
            limit: the maximum number of executions, 1 to 10,000.
            before: only ids below this one: the last id of a page asks for the next page.
            after: only ids above this one.
            oldest_first: return those with the lowest ids, in ascending order.
            status: one or several statuses; by default any.
            type: one or several types; by default any.
            parent_id: only the children of this execution.
            replay_of: only the replays of this execution.
            worker: only those that this worker runs or ran last. It has no index: combine it with
                a status or a window.
            created_since: only those created at this time, an aware datetime, or later. They are
                found by their ids, which sort by creation. An execution may be missed if the
                library did not make its id, or the clock of its host was wrong by over a day.
            created_until: only those created before this time, found in the same way.
            finished_since: only those that finished at this time or later.
            finished_until: only those that finished before this time.

        Returns:
            At most `limit` executions; an empty list if there are none.

        Raises:
            ExecutionNotFound: `parent_id` or `replay_of` is not a UUID.
            InvalidValue: `before` is not a UUID, or another argument is invalid.
        """
        selected = check_selection(**conditions)
        page = Page(**selected, **check_bounds(limit, before, after, oldest_first))
        return cast("ManyT", self._store.list(page))

    def wait(self, id: str, *, timeout: timedelta | None = None) -> OneT:
        """Wait until an execution has finished: `manager.wait(id, timeout=timedelta(minutes=1))`.

        It asks the database, after 20 ms first and after a long wait once a second. All that wait
        in a process, by one store, share these calls: 1,000 cost little more than one.

        Args:
            id: the id of the execution.
            timeout: how long to wait, 0 or more; without it there is no limit. A call of the
                database that is under way is not interrupted.

        Returns:
            The execution: completed, failed, timed out or cancelled.

        Raises:
            TimeoutError: it has not finished in time.
            ExecutionNotFound: it does not exist, or was deleted meanwhile.
            InvalidValue: the manager writes in a transaction of the caller's, or the timeout is
                invalid.
            Exception: what the store raises. It ends the wait of all that shared the call.
        """
        return cast("OneT", self._run(verbs.wait(self._store, self._waiter(id, timeout))))

    def wait_children(self, id: str, *, timeout: timedelta | None = None) -> ChildrenT:
        """Wait until no child of an execution is live: `manager.wait_children(batch.id)`.

        Children are those with this `parent_id`, without their own children. Those that are created
        after it has returned are not waited for. See `wait` for the calls that it makes.

        Args:
            id: the id of the parent, in any status.
            timeout: how long to wait, 0 or more; without it there is no limit.

        Returns:
            The children, counted, as `children` does.

        Raises:
            TimeoutError: a child is still pending, running or retrying.
            ExecutionNotFound: the parent does not exist, or was deleted meanwhile.
            InvalidValue: the manager writes in a transaction of the caller's, or the timeout is
                invalid.
            Exception: what the store raises. It ends the wait of all that shared the call.
        """
        waiter = self._waiter(id, timeout, children=True)
        return cast("ChildrenT", self._run(verbs.wait_children(self._store, waiter)))

    def _waiter(self, id: str, timeout: timedelta | None, *, children: bool = False) -> Waiter:
        if self._joined:
            raise InvalidValue(
                "wait", "must be outside of your transaction, which would wait for itself"
            )
        limit = None if timeout is None else validation.delay("timeout", timeout)
        return self._waiter_class(validation.execution_id(id), limit, children=children)

    def count(self, **conditions: Unpack[Conditions]) -> CountT:
        """Return the number of executions: `manager.count(status="failed", type="mail")`.

        The conditions are those of `list`. Live executions are counted by index. To count a million
        finished ones takes about a tenth of a second.
        """
        selection = Selection(**check_selection(**conditions))
        return cast("CountT", self._store.count(selection))

    def children(self, id: str) -> ChildrenT:
        """Count the children of an execution: `manager.children(batch.id).percent`.

        Returns:
            Their number, how many have finished, the percentage, the number by status, and the
            newest 100 of those that failed or timed out.

        Raises:
            ExecutionNotFound: there is no such execution.
        """
        return cast("ChildrenT", self._run(verbs.children(self._store, id)))

    def logs(
        self,
        id: str,
        *,
        limit: int = 100,
        before: str | None = None,
        after: str | None = None,
        oldest_first: bool = False,
    ) -> EntriesT:
        """Return the log of an execution, newest first: `manager.logs(id)[0].message`.

        Args:
            id: the id of the execution.
            limit: the maximum number of entries, 1 to 10,000.
            before: only entries older than this one: the last id of a page asks for the next page.
            after: only entries newer than this one: to follow a log, with `oldest_first`.
            oldest_first: return the oldest entries, in ascending order.
        """
        bounds = check_bounds(limit, before, after, oldest_first)
        page = LogPage(execution_id=validation.execution_id(id), **bounds)
        return cast("EntriesT", self._run(verbs.logs(self._store, page)))

    def history(self, id: str) -> HistoryT:
        """Return the history of an execution, oldest first: `manager.history(id)[-1].actor`.

        One `HistoryEntry` for the creation and one for each transition. Raises ExecutionNotFound,
        or NotImplementedError if the store keeps no history.
        """
        return cast("HistoryT", self._run(verbs.records(self._store, "history", id)))

    def attempts(self, id: str) -> RecordsT:
        """Return the attempts of an execution in order: `manager.attempts(id)[0].outcome`.

        One `AttemptRecord` for each, also for the one that is running. Raises ExecutionNotFound, or
        NotImplementedError if the store keeps no history.
        """
        return cast("RecordsT", self._run(verbs.records(self._store, "attempts", id)))
