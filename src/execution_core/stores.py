"""What the author of a store needs: the protocols, and the requests that a store carries out.

A store needs three steps (docs/stores.md has a complete one):

1. Implement `ExecutionStore` (or `AsyncExecutionStore`): eleven methods, each atomic.
2. Let each request decide: `transition.apply(execution, now)` returns what to store.
3. Run the contract against it: `class TestMyStore(execution_core.testing.StoreContract)`.
"""

from .core.creation import NewExecution
from .core.log_lines import NewLogEntry
from .core.selections import BatchTransition, LogPage, Page, PruneRequest, Selection
from .core.store import AsyncExecutionStore, ExecutionStore, Returning
from .core.transitions import Transition

__all__ = [
    "AsyncExecutionStore",
    "BatchTransition",
    "ExecutionStore",
    "LogPage",
    "NewExecution",
    "NewLogEntry",
    "Page",
    "PruneRequest",
    "Returning",
    "Selection",
    "Transition",
]
