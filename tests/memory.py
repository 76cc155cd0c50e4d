"""The smallest store: what anyone writes for a database of their own."""

import builtins
import threading
from datetime import UTC, datetime

from execution_core import Execution
from execution_core.creation import Creation
from execution_core.store import Page
from execution_core.transitions import Transition


class MemoryStore:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rows: dict[str, Execution] = {}

    def create(self, creation: Creation) -> Execution | None:
        with self.lock:
            key, parent = creation.idempotency_key, creation.parent_id
            if (key and self.find_by_idempotency_key(key)) or (parent and parent not in self.rows):
                return None
            return self.rows.setdefault(creation.id, creation.apply(datetime.now(UTC)))

    def find_by_id(self, id: str) -> Execution | None:
        return self.rows.get(id)

    def find_by_idempotency_key(self, key: str) -> Execution | None:
        return next((e for e in self.rows.values() if e.idempotency_key == key), None)

    def update(self, id: str, transition: Transition) -> Execution | None:
        with self.lock:
            found = self.rows.get(id)
            moved = found and transition.apply(found, datetime.now(UTC))
            if moved:
                self.rows[id] = moved
            return moved

    def delete(self, id: str) -> bool:
        with self.lock:
            for child in [e for e in self.rows.values() if e.parent_id == id]:
                self.rows[child.id] = child.model_copy(update={"parent_id": None})
            return self.rows.pop(id, None) is not None

    def list(self, page: Page) -> builtins.list[Execution]:
        found = sorted(filter(page.includes, self.rows.values()), key=lambda e: e.id, reverse=True)
        return found[: page.limit]


class AsyncMemoryStore:
    def __init__(self) -> None:
        self.store = MemoryStore()

    async def create(self, creation: Creation) -> Execution | None:
        return self.store.create(creation)

    async def find_by_id(self, id: str) -> Execution | None:
        return self.store.find_by_id(id)

    async def find_by_idempotency_key(self, key: str) -> Execution | None:
        return self.store.find_by_idempotency_key(key)

    async def update(self, id: str, transition: Transition) -> Execution | None:
        return self.store.update(id, transition)

    async def delete(self, id: str) -> bool:
        return self.store.delete(id)

    async def list(self, page: Page) -> builtins.list[Execution]:
        return self.store.list(page)
