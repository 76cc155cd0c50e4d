"""The verbs of the sync and the async manager for many executions, each with its own values.

A verb returns the result of its steps, or a coroutine that returns it: the type parameters say
which.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast

from ..core import batch_items, transitions, validation
from ..core.batch_items import Change
from ..core.models import Execution, ExecutionFailure
from ..core.steps import Steps
from . import batch_steps

ManyT = TypeVar("ManyT")
AnswersT = TypeVar("AnswersT")


class BatchVerbs(Generic[ManyT, AnswersT]):
    """The verbs for many executions: some statements for 500 of them, instead of one for each."""

    _store: Any
    _max_bytes: int
    _joined: bool
    _run: Callable[[Steps[Any]], Any]  # defined by the sync and the async manager

    def create_many(self, items: Iterable[Mapping[str, Any]]) -> ManyT:
        """Create executions: `manager.create_many([{"type": "mail", "payload": 1}])`.

        The rules are those of `create`. All items are checked, and their keys and parents looked
        up, before anything is written. Up to 500 items, or 4 million characters of JSON, are one
        statement, which creates all of them or none. For all or none of a larger call, use
        `within`; or give each item a key, and repeat the call if it fails.

        Args:
            items: mappings of the arguments of `create`.

        Returns:
            The executions in the order given, each new or the holder of its key. Items with the
            same key have the same execution.

        Raises:
            IdempotencyConflict: a key belongs to an execution, or an item, of another type or
                payload. Nothing was created, unless another caller created the key meanwhile.
            ExecutionNotFound: a parent does not exist. Nothing was created, unless another caller
                deleted it meanwhile.
            InvalidStateTransition: a parent has finished. Nothing was created, unless it finished
                meanwhile.
            InvalidValue: an argument cannot be stored: `items[3].payload ...`.
        """
        news = batch_items.check_new_items(items, self._max_bytes)
        return cast("ManyT", self._run(batch_steps.create_many(self._store, news)))

    def complete_many(
        self, items: Iterable[tuple[str | Execution, Any]], *, by: str | None = None
    ) -> AnswersT:
        """Complete executions: `manager.complete_many([(job, {"sent": 3}) for job in jobs])`.

        Each as `complete` does. All results are checked before anything is written. Up to 500
        executions are one statement; a call of several statements is one transaction only with
        `within`.

        Args:
            items: pairs of an execution and its result, any JSON value. An execution that `claim`
                or `start` returned is completed only while that attempt is running; an id, in any
                attempt.
            by: who does it, 1 to 255 characters, for the history.

        Returns:
            For each item, in the order given, the completed execution, or the `ExecutionProblem`
            that `complete` would have raised. Of several items for one execution, one can succeed.

        Raises:
            InvalidValue: a result cannot be stored: `items[3].result ...`. Nothing was changed.
        """
        changes = batch_items.check_change_items(
            items, "result", lambda value, n: transitions.complete(value, n, self._max_bytes)
        )
        return self._change_each(changes, by)

    def fail_many(
        self,
        items: Iterable[tuple[str | Execution, ExecutionFailure | BaseException | str]],
        *,
        retryable: bool | None = None,
        retry_after: timedelta | None = None,
        by: str | None = None,
    ) -> AnswersT:
        """Record that attempts failed: `manager.fail_many([(job, exc)], retryable=True)`.

        Each as `fail` does. Up to 500 executions are one statement for retryable errors and one for
        the others; a call of several statements is one transaction only with `within`.

        Args:
            items: pairs of an execution and its error, an `ExecutionFailure`, an exception or a
                text. An execution that `claim` or `start` returned fails only while that attempt is
                running; an id, in any attempt.
            retryable: whether another attempt may help; overrides `error.retryable` of each.
            retry_after: the delay before `claim` may start the next attempts; implies `retryable`.
            by: who does it, 1 to 255 characters, for the history.

        Returns:
            For each item, in the order given, the execution, or the `ExecutionProblem` that `fail`
            would have raised. Of several items for one execution, one can succeed.

        Raises:
            InvalidValue: an argument is invalid. Nothing was changed.
        """
        transitions.fail("", retryable, retry_after, None)  # checks the options of all items
        changes = batch_items.check_change_items(
            items, "error", lambda error, n: transitions.fail(error, retryable, retry_after, n)
        )
        return self._change_each(changes, by)

    def _change_each(self, changes: list[Change], by: str | None) -> AnswersT:
        if by is not None:
            actor = validation.name("by", by)
            changes = [(id, replace(each, actor=actor)) for id, each in changes]
        return cast(
            "AnswersT",
            self._run(batch_steps.change_each(self._store, changes, joined=self._joined)),
        )
