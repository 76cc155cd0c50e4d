# ruff: noqa: D102 - what a store's methods do, its protocol says
"""Executions in Redis: a whole store of one's own, for threads and for asyncio.

    manager = ExecutionManager(RedisStore("redis://localhost"))
    manager = AsyncExecutionManager(AsyncRedisStore("redis://localhost"))

What to ask Redis for, and what to make of its answers, stands once in `Plans`: generators that
yield commands and are sent their answers. The two stores at the end only carry them there and back.
A plan writes by compare and set: one script, which changes nothing unless all that the plan relies
on is as it was read. Where it is not, the plan begins again.
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
    NewExecution,
    NewLogEntry,
    Page,
    PruneRequest,
    Returning,
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
WAITING, RUNNING, OVER = GROUPS = ("waiting", "running", "over")
GROUP_OF = {"pending": WAITING, "retrying": WAITING, "running": RUNNING}

# How many conditions; each: how many words, a command, what it has to answer. Then the commands
# that are run if all conditions hold, each with the number of its words before it.
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
    """An execution, and the text that stood for it when it was read."""

    execution: Execution
    text: str


class Plans:
    """What a store does, in commands of Redis.

    `execution:ID` is a hash: the execution as JSON in `data`, and beside it what it names, so that
    what is named can be deleted. `links:ID` is the set of those who name it, `key:KEY` the id of
    who holds a key, `log:ID` its lines. Every execution is in the sorted set `ids`, and in one of
    `waiting`, `running` and `over`, by the time since when it is there.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def create(self, creation: NewExecution) -> Plan[Execution | None]:
        now, _ = yield from self._rows([])
        new = creation.apply(now)
        named = {link: id for link in LINKS if (id := getattr(new, link))}
        conditions: list[Command] = [("EXISTS", self._row(id), 1) for id in named.values()]
        commands: list[Command] = [*self._stored(new), ("ZADD", self._at("ids"), 0, new.id)]
        for link, id in named.items():
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
            moved = transition.apply(rows[0].execution, now) if rows else None
            if not moved:
                return None
            if (yield from self._replaced(rows[0], moved)):
                return moved if returning == "execution" else moved.status

    def update_many(self, batch: BatchTransition) -> Plan[builtins.list[Execution]]:
        moved: builtins.list[Execution] = []
        now, _ = yield from self._rows([])
        rule = batch.transition.rule
        until = now if any(move.when is Condition.DUE for move in rule.moves) else None
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
                    elif (yield from self._replaced(row, allowed[0])):
                        moved += allowed
                        stay += _group_of(allowed[0].status) == group
        return sorted(moved, key=lambda each: each.id)

    def delete(self, id: str) -> Plan[bool]:
        while True:
            _, rows = yield from self._rows([id])
            if not rows:
                return False
            these, naming = yield from self._naming(id)
            there = ("EXISTS", self._row(id), 1)
            if (yield from self._removed(rows[0], naming, [these, there])):
                return True

    def prune(self, pruning: PruneRequest) -> Plan[int]:
        count = stay = 0
        now, _ = yield from self._rows([])
        until = now - min(pruning.older_than, pruning.keys_older_than)
        while count < pruning.limit:
            now, rows = yield from self._group(OVER, until, stay)
            if not rows:
                break
            for row in rows:
                if count < pruning.limit and (yield from self._pruned(row, pruning, now)):
                    count += 1
                else:
                    stay += 1
        return count

    def list(self, page: Page) -> Plan[builtins.list[Execution]]:
        found: list[Execution] = []
        highest = page.before
        while len(found) < page.limit:
            (ids,) = yield [self._newest(self._at("ids"), highest, CHUNK)]
            if not ids:
                break
            _, rows = yield from self._rows(ids)
            found += [row.execution for row in rows if page.includes(row.execution)]
            highest = ids[-1]
        return found[: page.limit]

    def log(self, line: NewLogEntry) -> Plan[LogEntry | None]:
        while True:
            now, rows = yield from self._rows([line.execution_id])
            entry = line.apply(rows[0].execution, now) if rows else None
            if entry is None:
                return None
            member = entry.id + entry.model_dump_json()
            append = ("ZADD", self._at("log", line.execution_id), 0, member)
            if (yield from self._set([self._is(rows[0])], [append])):
                return entry

    def logs(self, id: str, limit: int, before: str | None) -> Plan[builtins.list[LogEntry]]:
        (members,) = yield [self._newest(self._at("log", id), before, limit)]
        return [LogEntry.model_validate(json.loads(member[ID_LENGTH:])) for member in members]

    def _rows(self, ids: Iterable[str]) -> Plan[tuple[datetime, builtins.list[Row]]]:
        """Return the server's time, and those of the executions that are there."""
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
        """Return the time, and some of a group, those first that are in it for the longest."""
        highest = "+inf" if until is None else _score(until)
        by_score = ("ZRANGE", self._at(group), "-inf", highest, "BYSCORE", "LIMIT", skip, CHUNK)
        (ids,) = yield [by_score]
        return (yield from self._rows(ids))

    def _naming(self, id: str) -> Plan[tuple[Command, builtins.list[Row]]]:
        """Return the children and the replays of an execution; first, that there are no others."""
        links = self._at("links", id)
        (ids,) = yield [("SMEMBERS", links)]
        _, rows = yield from self._rows(ids)
        return ("SMEMBERS", links, " ".join(sorted(ids))), rows

    def _pruned(self, row: Row, pruning: PruneRequest, now: datetime) -> Plan[bool]:
        if not pruning.apply([row.execution], now):
            return False
        these, naming = yield from self._naming(row.execution.id)
        family = [row, *naming]
        gone = replace(pruning, limit=len(family)).apply((each.execution for each in family), now)
        if row.execution not in gone:
            return False
        unchanged = [self._is(each) for each in family]
        return (yield from self._removed(row, naming, [these, *unchanged]))

    def _removed(
        self, row: Row, naming: builtins.list[Row], conditions: builtins.list[Command]
    ) -> Plan[bool]:
        gone = row.execution
        commands: list[Command] = [
            ("DEL", self._row(gone.id), self._at("links", gone.id), self._at("log", gone.id)),
            *(("ZREM", self._at(where), gone.id) for where in ("ids", *GROUPS)),
        ]
        if gone.idempotency_key:
            commands.append(("DEL", self._at("key", gone.idempotency_key)))
        for link in LINKS:
            if named := getattr(gone, link):
                commands.append(("SREM", self._at("links", named), gone.id))
            commands += [
                ("HDEL", self._row(each.execution.id), link)
                for each in naming
                if getattr(each.execution, link) == gone.id
            ]
        return (yield from self._set(conditions, commands))

    def _replaced(self, row: Row, execution: Execution) -> Plan[bool]:
        return (yield from self._set([self._is(row)], self._stored(execution)))

    def _is(self, row: Row) -> Command:
        """Return the condition that an execution is as it was read."""
        return ("HGET", self._row(row.execution.id), "data", row.text)

    def _stored(self, execution: Execution) -> builtins.list[Command]:
        text = execution.model_dump_json(exclude={*LINKS})
        group = _group_of(execution.status)
        since = {
            WAITING: execution.due_at,
            RUNNING: execution.started_at,
            OVER: execution.completed_at,
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

    def _newest(self, key: str, before: str | None, count: int) -> Command:
        highest = f"({before}" if before else "+"
        return ("ZRANGE", key, highest, "-", "BYLEX", "REV", "LIMIT", 0, count)

    def _row(self, id: str) -> str:
        return self._at("execution", id)

    def _at(self, *names: str) -> str:
        return ":".join([self._prefix, *names])


def _group_of(status: ExecutionStatus) -> str:
    return GROUP_OF.get(status, OVER)


def _score(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


# A command that is sent again after a cut connection would take its own work for somebody else's.
ONCE = (NoBackoff(), 0)


def carried(plan: Callable[Concatenate[Plans, P], Any]) -> Callable[Concatenate[Any, P], Any]:
    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self.carry(plan(self.plans, *args, **kwargs))

    return method


class Carried:
    """The methods of a store, each a plan that `carry` runs to its end."""

    create = carried(Plans.create)
    find_by_id = carried(Plans.find_by_id)
    find_by_idempotency_key = carried(Plans.find_by_idempotency_key)
    update = carried(Plans.update)
    update_many = carried(Plans.update_many)
    list = carried(Plans.list)
    delete = carried(Plans.delete)
    prune = carried(Plans.prune)
    log = carried(Plans.log)
    logs = carried(Plans.logs)


class RedisStore(Carried):
    """An `ExecutionStore` in Redis 6.2 or newer: `ExecutionManager(RedisStore(url))`."""

    def __init__(self, url: str, prefix: str = "executions") -> None:
        self.plans = Plans(prefix)
        self.redis: Any = redis.Redis.from_url(url, decode_responses=True, retry=Retry(*ONCE))

    def carry(self, plan: Plan[T]) -> T:
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


class AsyncRedisStore(Carried):
    """The same for asyncio: `AsyncExecutionManager(AsyncRedisStore(url))`."""

    def __init__(self, url: str, prefix: str = "executions") -> None:
        self.plans = Plans(prefix)
        self.redis: Any = redis.asyncio.Redis.from_url(
            url, decode_responses=True, retry=AsyncRetry(*ONCE)
        )

    async def carry(self, plan: Plan[T]) -> T:
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
