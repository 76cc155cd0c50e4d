# mypy: disable-error-code="misc, no-any-return"
"""Stores that violate the contract, each in the way that its name says."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from execution_core import Execution
from execution_core.core.json_values import JsonMembers, to_json
from execution_core.stores import BatchTransition, PruneRequest, Transition

from .memory import AsyncMemoryStore, memory_store

MemoryStore: Any = type(memory_store())


class ReadThenWrite(MemoryStore):
    def update(self, id: str, transition: Transition, *, returning: str = "execution") -> Any:
        found = self.rows.get(id)
        changed = found and transition.apply(found, datetime.now(UTC), ())
        if changed:
            self.rows[id] = changed
        return changed and (changed if returning == "execution" else changed.status)


class FenceIgnored(MemoryStore):
    def update(self, id: str, transition: Transition, *, returning: str = "execution") -> Any:
        return super().update(id, replace(transition, attempt=None), returning=returning)


class KeyOverwritten(MemoryStore):
    def create(self, creation: Any) -> Execution | None:
        key = creation.idempotency_key
        if held := key and self.find_by_idempotency_key(key):
            self.rows[held.id] = held.model_copy(update={"idempotency_key": None})
        return super().create(creation)


class MergedDeep(MemoryStore):
    def update(self, id: str, transition: Transition, *, returning: str = "execution") -> Any:
        found, entry = self.rows.get(id), transition.values.get("checkpoints")
        if found and isinstance(entry, JsonMembers):
            ((key, value),) = entry.values.items()
            old, new = found.checkpoints.get(key), value.value
            if isinstance(old, dict) and isinstance(new, dict):
                merged = JsonMembers({key: to_json("value", old | new)})
                transition = replace(
                    transition, values={**transition.values, "checkpoints": merged}
                )
        return super().update(id, transition, returning=returning)


class RefusalTouches(MemoryStore):
    def update(self, id: str, transition: Transition, *, returning: str = "execution") -> Any:
        moved = super().update(id, transition, returning=returning)
        if moved is None and id in self.rows:
            touched = {"updated_at": datetime.now(UTC)}
            self.rows[id] = self.rows[id].model_copy(update=touched)
        return moved


class BatchUnguarded(MemoryStore):
    def update_many(self, batch: BatchTransition) -> list[Execution]:
        moved = batch.apply([*self.rows.values()], datetime.now(UTC))
        self.rows.update((each.id, each) for each in moved)
        return moved


class HeartbeatUnguarded(MemoryStore):
    def heartbeat_many(self, attempts: list[tuple[str, int]]) -> set[tuple[str, int]]:
        now = {"heartbeat_at": datetime.now(UTC), "updated_at": datetime.now(UTC)}
        found = [self.rows[id] for id, _ in attempts if id in self.rows]
        self.rows.update((each.id, each.model_copy(update=now)) for each in found)
        return {(each.id, each.attempts) for each in found}


class HistoryEmpty(MemoryStore):
    def history(self, id: str) -> list[Any]:
        return []

    attempts = history


class PruneKeepsLog(MemoryStore):
    def prune(self, pruning: PruneRequest) -> int:
        kept = self.entries
        count: int = super().prune(pruning)
        self.entries[:] = kept
        return count


class AsyncReadThenWrite(AsyncMemoryStore):
    async def update(self, id: str, transition: Transition, *, returning: str = "execution") -> Any:
        rows = self.store.rows  # type: ignore[attr-defined]
        found = rows.get(id)
        await asyncio.sleep(0)
        moved = found and transition.apply(found, datetime.now(UTC), ())
        if moved:
            rows[id] = moved
        return moved and (moved if returning == "execution" else moved.status)
