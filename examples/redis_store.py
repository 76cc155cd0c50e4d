# ruff: noqa: D102 - the protocol describes the methods of a store
"""A complete store in Redis, for threads and for asyncio.

    manager = ExecutionManager(RedisStore("redis://localhost"))
    manager = AsyncExecutionManager(AsyncRedisStore("redis://localhost"))

The logic is in `Plans`: generators that yield commands and are sent their answers. The two stores
at the end only send the commands. A plan writes by compare and set: one script that changes nothing
unless everything that the plan has read is unchanged. If it has changed, the plan starts again.
"""

import builtins
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from execution_core import Execution, ExecutionStatus, LogEntry
from execution_core.core.state_machine import Condition
from execution_core.stores import (
    BatchTransition,
    LogPage,
    NewExecution,
    NewLogEntry,
    Page,
    PruneRequest,
    Returning,
    Selection,
    Transition,
)

P = ParamSpec("P")
T = TypeVar("T")
Command = Sequence[str | int]
Plan = Generator[Sequence[Command], Sequence[Any], T]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
CHUNK = 100
ID_LENGTH = 36
LINKS = ("parent_id", "replay_of")
WAITING, RUNNING, FINISHED = GROUPS = ("waiting", "running", "finished")
GROUP_OF = {"pending": WAITING, "retrying": WAITING, "running": RUNNING}

# Arguments: the number of conditions; each condition as the number of its words, a command and the
# expected answer; then the commands to run if all conditions hold, each after the number of its
# words.
COMPARE_AND_SET = """
local at = 2
local function words()
  local count = tonumber(ARGV[at])
  at = at + count + 1
  return {unpack(ARGV, at - count, at - 1)}
end
for _ = 1, tonumber(ARGV[1]) do
  local condition = words()
  local expected = table.remove(condition)
  local answer = redis.call(unpack(condition))
  if type(answer) == 'table' then
    table.sort(answer)
    answer = table.concat(answer, ' ')
  end
  if tostring(answer or '') ~= expected then return 0 end
end
while at <= #ARGV do redis.call(unpack(words())) end
return 1
"""


class Row(NamedTuple):
    """An execution and the JSON text from which it was read."""

    execution: Execution
    text: str


class Plans:
    """The methods of a store as generators of Redis commands.

    `execution:ID` is a hash: the execution as JSON in `data`, and `parent_id` and `replay_of`
    beside it, so that `delete` can remove them. `links:ID` is the set of its children and replays,
    `key:KEY` the id of the execution with an idempotency key, `log:ID` its log entries. Every
    execution is in the sorted set `ids`, and in one of `waiting`, `running` and `finished`, sorted
    by its due time, start or end.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def create(self, creation: NewExecution) -> Plan[Execution | None]:
        now, _ = yield from self._rows([])
        new = creation.apply(now)
        linked = {link: id for link in LINKS if (id := getattr(new, link))}
        conditions: list[Command] = [("EXISTS", self._row(id), 1) for id in linked.values()]
        if new.parent_id and creation.needs_live_parent:
            conditions.append(("ZSCORE", self._at(FINISHED), new.parent_id, ""))
        commands: list[Command] = [*self._store(new), ("ZADD", self._at("ids"), 0, new.id)]
        for link, id in linked.items():
            commands.append(("HSET", self._row(new.id), link, id))
            commands.append(("SADD", self._at("links", id), new.id))
        if new.idempotency_key:
            key = self._at("key", new.idempotency_key)
            conditions.append(("EXISTS", key, 0))
            commands.append(("SET", key, new.id))
        return new if (yield from self._set(conditions, commands)) else None

    def find_by_id(self, id: str) -> Plan[Execution | None]:
        _, rows = yield from self._rows([id])
        return rows[0].execution if rows else None

    def find_by_idempotency_key(self, key: str) -> Plan[Execution | None]:
        (id,) = yield [("GET", self._at("key", key))]
        return (yield from self.find_by_id(id)) if id else None

    def update(
        self, id: str, transition: Transition, *, returning: Returning = "execution"
    ) -> Plan[Execution | ExecutionStatus | None]:
        while True:
            now, rows = yield from self._rows([id])
            if not rows:
                return None
            conditions, children = [self._unchanged(rows[0])], list[Row]()
            if transition.rule.reads_children:
                children, same_children = yield from self._children(id)
                conditions += same_children
            statuses = [row.execution.status for row in children]
            moved = transition.apply(rows[0].execution, now, statuses)
            if not moved:
                return None
            deleted = [("DEL", self._at("log", id))] if transition.rule.deletes_log else []
            if (yield from self._set(conditions, [*self._store(moved), *deleted])):
                return moved if returning == "execution" else moved.status

    def update_many(self, batch: BatchTransition) -> Plan[builtins.list[Execution]]:
        moved: builtins.list[Execution] = []
        now, _ = yield from self._rows([])
        rule = batch.transition.rule
        if batch.root is not None or rule.reads_children:
            return (yield from self._update_each(batch))
        until = now if any(Condition.DUE in move.when for move in rule.moves) else None
        for group in sorted({_group_of(status) for status in rule.sources}):
            stay = 0
            while len(moved) < batch.limit:
                now, rows = yield from self._group(group, until, stay)
                if not rows:
                    break
                for row in rows:
                    allowed = batch.apply([row.execution], now)[: batch.limit - len(moved)]
                    if not allowed:
                        stay += 1
                    elif (yield from self._replace(row, allowed[0])):
                        moved += allowed
                        stay += _group_of(allowed[0].status) == group
        return sorted(moved, key=lambda each: each.id)

    def _update_each(self, batch: BatchTransition) -> Plan[builtins.list[Execution]]:
        """Update one after the other: those of a tree, or those that depend on their children."""
        (ids,) = yield [("ZRANGE", self._at(RUNNING), 0, -1)]
        if batch.root is not None:
            ids, below = [batch.root], [batch.root]
            while below:
                children, _ = yield from self._children(below.pop())
                new = {row.execution.id for row in children} - {*ids}
                ids, below = [*ids, *new], [*below, *new]
        moved: builtins.list[Execution] = []
        for id in ids:
            if len(moved) < batch.limit:
                changed: Any = yield from self.update(id, batch.transition)
                moved += [changed] if changed else []
        return sorted(moved, key=lambda each: each.id)

    def delete(self, id: str) -> Plan[bool]:
        while True:
            _, rows = yield from self._rows([id])
            if not rows:
                return False
            same_links, linking = yield from self._linking(id)
            exists = ("EXISTS", self._row(id), 1)
            if (yield from self._remove(rows[0], linking, [same_links, exists])):
                return True

    def prune(self, pruning: PruneRequest) -> Plan[int]:
        count = stay = 0
        now, _ = yield from self._rows([])
        until = now - min(pruning.older_than, pruning.keys_older_than)
        while count < pruning.limit:
            now, rows = yield from self._group(FINISHED, until, stay)
            if not rows:
                break
            for row in rows:
                if count < pruning.limit and (yield from self._prune(row, pruning, now)):
                    count += 1
                else:
                    stay += 1
        return count

    def list(self, page: Page) -> Plan[builtins.list[Execution]]:
        found: list[Execution] = []
        while len(found) < page.limit:
            (ids,) = yield [self._ids(self._at("ids"), page, CHUNK)]
            if not ids:
                break
            _, rows = yield from self._rows(ids)
            found += [row.execution for row in rows if page.includes(row.execution)]
            page = replace(page, **{"after" if page.oldest_first else "before": ids[-1]})
        return found[: page.limit]

    def count(self, selection: Selection) -> Plan[int]:
        counted = 0
        every: dict[str, Any] = {"limit": CHUNK, "before": None, "after": None}
        page = LogPage(execution_id="", oldest_first=True, **every)
        while True:
            (ids,) = yield [self._ids(self._at("ids"), page, CHUNK)]
            if not ids:
                return counted
            _, rows = yield from self._rows(ids)
            counted += sum(selection.includes(row.execution) for row in rows)
            page = replace(page, after=ids[-1])

    def log(self, line: NewLogEntry) -> Plan[LogEntry | None]:
        while True:
            now, rows = yield from self._rows([line.execution_id])
            entry = line.apply(rows[0].execution, now) if rows else None
            if entry is None:
                return None
            member = entry.id + entry.model_dump_json()
            append = ("ZADD", self._at("log", line.execution_id), 0, member)
            if (yield from self._set([self._unchanged(rows[0])], [append])):
                return entry

    def logs(self, page: LogPage) -> Plan[builtins.list[LogEntry]]:
        (members,) = yield [self._ids(self._at("log", page.execution_id), page, page.limit)]
        return [LogEntry.model_validate(json.loads(member[ID_LENGTH:])) for member in members]

    def _rows(self, ids: Iterable[str]) -> Plan[tuple[datetime, builtins.list[Row]]]:
        """Return the time of the server and those of the executions that exist."""
        hashes = [("HMGET", self._row(id), "data", *LINKS) for id in ids]
        (seconds, microseconds), *answers = yield [("TIME",), *hashes]
        rows = [
            Row(Execution.model_validate(json.loads(text) | {"parent_id": p, "replay_of": r}), text)
            for text, p, r in answers
            if text is not None
        ]
        now = EPOCH + timedelta(seconds=seconds, microseconds=microseconds)
        return max([now, *(row.execution.updated_at for row in rows)]), rows

    def _group(
        self, group: str, until: datetime | None, skip: int
    ) -> Plan[tuple[datetime, builtins.list[Row]]]:
        """Return the time and some executions of a group, the oldest in it first."""
        highest = "+inf" if until is None else _score(until)
        by_score = ("ZRANGE", self._at(group), "-inf", highest, "BYSCORE", "LIMIT", skip, CHUNK)
        (ids,) = yield [by_score]
        return (yield from self._rows(ids))

    def _linking(self, id: str) -> Plan[tuple[Command, builtins.list[Row]]]:
        """Return a condition that the links are unchanged, and the children and replays."""
        links = self._at("links", id)
        (ids,) = yield [("SMEMBERS", links)]
        _, rows = yield from self._rows(ids)
        return ("SMEMBERS", links, " ".join(sorted(ids))), rows

    def _children(self, id: str) -> Plan[tuple[builtins.list[Row], builtins.list[Command]]]:
        """Return the children, and conditions that neither they nor their number has changed."""
        same_links, linking = yield from self._linking(id)
        children = [row for row in linking if row.execution.parent_id == id]
        return children, [same_links, *map(self._unchanged, children)]

    def _prune(self, row: Row, pruning: PruneRequest, now: datetime) -> Plan[bool]:
        if not pruning.apply([row.execution], now):
            return False
        same_links, linking = yield from self._linking(row.execution.id)
        family = {each.execution.id: each.execution for each in (row, *linking)}
        below = [each.execution.id for each in linking]
        while below:  # the whole tree: all ancestors of a live execution are kept
            _, rows = yield from self._linking(below.pop())
            new = {each.execution.id: each.execution for each in rows}.items() - family.items()
            family |= dict(new)
            below += dict(new)
        gone = replace(pruning, limit=len(family)).apply(family.values(), now)
        if row.execution not in gone:
            return False
        unchanged = [self._unchanged(each) for each in (row, *linking)]
        return (yield from self._remove(row, linking, [same_links, *unchanged]))

    def _remove(
        self, row: Row, linking: builtins.list[Row], conditions: builtins.list[Command]
    ) -> Plan[bool]:
        gone = row.execution
        commands: list[Command] = [
            ("DEL", self._row(gone.id), self._at("links", gone.id), self._at("log", gone.id)),
            *(("ZREM", self._at(where), gone.id) for where in ("ids", *GROUPS)),
        ]
        if gone.idempotency_key:
            commands.append(("DEL", self._at("key", gone.idempotency_key)))
        for link in LINKS:
            if target := getattr(gone, link):
                commands.append(("SREM", self._at("links", target), gone.id))
            commands += [
                ("HDEL", self._row(each.execution.id), link)
                for each in linking
                if getattr(each.execution, link) == gone.id
            ]
        return (yield from self._set(conditions, commands))

    def _replace(self, row: Row, execution: Execution, *more: Command) -> Plan[bool]:
        commands = [*self._store(execution), *more]
        return (yield from self._set([self._unchanged(row)], commands))

    def _unchanged(self, row: Row) -> Command:
        """Return the condition that an execution has not changed since it was read."""
        return ("HGET", self._row(row.execution.id), "data", row.text)

    def _store(self, execution: Execution) -> builtins.list[Command]:
        text = execution.model_dump_json(exclude={*LINKS})
        group = _group_of(execution.status)
        since = {
            WAITING: execution.due_at,
            RUNNING: execution.started_at,
            FINISHED: execution.completed_at,
        }[group]
        return [
            ("HSET", self._row(execution.id), "data", text),
            *(("ZREM", self._at(other), execution.id) for other in GROUPS if other != group),
            ("ZADD", self._at(group), _score(since or execution.updated_at), execution.id),
        ]

    def _set(self, conditions: Sequence[Command], commands: Sequence[Command]) -> Plan[bool]:
        words = [part for each in (*conditions, *commands) for part in (len(each), *each)]
        (answer,) = yield [("EVAL", COMPARE_AND_SET, 0, len(conditions), *words)]
        return bool(answer)

    def _ids(self, key: str, page: Page | LogPage, count: int) -> Command:
        # An entry of a log begins with its id: "~" comes after all that may follow.
        lowest = f"({page.after}~" if page.after else "-"
        highest = f"({page.before}" if page.before else "+"
        limit = ("LIMIT", 0, count)
        if page.oldest_first:
            return ("ZRANGE", key, lowest, highest, "BYLEX", *limit)
        return ("ZRANGE", key, highest, lowest, "BYLEX", "REV", *limit)

    def _row(self, id: str) -> str:
        return self._at("execution", id)

    def _at(self, *names: str) -> str:
        return ":".join([self._prefix, *names])


def _group_of(status: ExecutionStatus) -> str:
    return GROUP_OF.get(status, FINISHED)


def _score(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


# A command repeated after a lost connection would take its own write for that of another caller.
NO_RETRIES = (NoBackoff(), 0)


def method_of(plan: Callable[Concatenate[Plans, P], Any]) -> Callable[Concatenate[Any, P], Any]:
    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self.run(plan(self.plans, *args, **kwargs))

    return method


class PlannedStore:
    """The methods of a store; `run` sends the commands of each plan."""

    create = method_of(Plans.create)
    find_by_id = method_of(Plans.find_by_id)
    find_by_idempotency_key = method_of(Plans.find_by_idempotency_key)
    update = method_of(Plans.update)
    update_many = method_of(Plans.update_many)
    list = method_of(Plans.list)
    count = method_of(Plans.count)
    delete = method_of(Plans.delete)
    prune = method_of(Plans.prune)
    log = method_of(Plans.log)
    logs = method_of(Plans.logs)


class RedisStore(PlannedStore):
    """An `ExecutionStore` in Redis 6.2 or newer: `ExecutionManager(RedisStore(url))`."""

    def __init__(self, url: str, prefix: str = "executions") -> None:
        self.plans = Plans(prefix)
        self.redis: Any = redis.Redis.from_url(url, decode_responses=True, retry=Retry(*NO_RETRIES))

    def run(self, plan: Plan[T]) -> T:
        try:
            commands = next(plan)
            while True:
                with self.redis.pipeline() as pipeline:
                    for command in commands:
                        pipeline.execute_command(*command)
                    answers = pipeline.execute()
                commands = plan.send(answers)
        except StopIteration as end:
            answer: T = end.value
            return answer

    def close(self) -> None:
        self.redis.close()


class AsyncRedisStore(PlannedStore):
    """An `AsyncExecutionStore` in Redis: `AsyncExecutionManager(AsyncRedisStore(url))`."""

    def __init__(self, url: str, prefix: str = "executions") -> None:
        self.plans = Plans(prefix)
        self.redis: Any = redis.asyncio.Redis.from_url(
            url, decode_responses=True, retry=AsyncRetry(*NO_RETRIES)
        )

    async def run(self, plan: Plan[T]) -> T:
        try:
            commands = next(plan)
            while True:
                async with self.redis.pipeline() as pipeline:
                    for command in commands:
                        pipeline.execute_command(*command)
                    answers = await pipeline.execute()
                commands = plan.send(answers)
        except StopIteration as end:
            answer: T = end.value
            return answer

    async def close(self) -> None:
        await self.redis.aclose()
