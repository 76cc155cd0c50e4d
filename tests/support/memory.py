"""The in-memory store of docs/stores.md, and the same for asyncio."""

import builtins
import re
from pathlib import Path
from typing import Any

from execution_core import Execution, LogEntry
from execution_core.stores import (
    BatchTransition,
    ExecutionStore,
    LogPage,
    NewExecution,
    NewLogEntry,
    Page,
    PruneRequest,
    Returning,
    Selection,
    Transition,
)

PAGE = Path(__file__).parents[2] / "docs" / "stores.md"


def memory_store() -> ExecutionStore:
    """Return the store as the page shows it."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "class MemoryStore" in block)
    names: dict[str, Any] = {}
    exec(block.split("manager = ")[0], names)
    store: ExecutionStore = names["MemoryStore"]()
    return store


class AsyncMemoryStore:
    def __init__(self) -> None:
        self.store = memory_store()

    async def create(self, creation: NewExecution) -> Execution | None:
        return self.store.create(creation)

    async def find_by_id(self, id: str) -> Execution | None:
        return self.store.find_by_id(id)

    async def find_by_idempotency_key(self, key: str) -> Execution | None:
        return self.store.find_by_idempotency_key(key)

    async def update(
        self, id: str, transition: Transition, *, returning: Returning = "execution"
    ) -> Any:
        return self.store.update(id, transition, returning=returning)

    async def update_many(self, batch: BatchTransition) -> builtins.list[Execution]:
        return self.store.update_many(batch)

    async def delete(self, id: str) -> bool:
        return self.store.delete(id)

    async def prune(self, pruning: PruneRequest) -> int:
        return self.store.prune(pruning)

    async def log(self, line: NewLogEntry) -> LogEntry | None:
        return self.store.log(line)

    async def logs(self, page: LogPage) -> builtins.list[LogEntry]:
        return self.store.logs(page)

    async def list(self, page: Page) -> builtins.list[Execution]:
        return self.store.list(page)

    async def count(self, selection: Selection) -> int:
        return self.store.count(selection)
