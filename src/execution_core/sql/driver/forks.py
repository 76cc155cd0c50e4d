"""What a forked process must not share with its parent: connections, and calls of its threads."""

import os
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakSet

_executors: Final = WeakSet[Any]()
_kept: Final = list[object]()


def reset_in_children(executor: Any) -> None:
    """Call `executor.forget_inherited()` in each forked process."""
    _executors.add(executor)


def keep(inherited: object) -> None:
    """Keep what belongs to the parent: to close it here would end the parent's sessions."""
    _kept.append(inherited)


def in_children(function: Callable[[], None]) -> None:
    """Call a function in each forked process."""
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=function)


def _reset_all() -> None:
    for executor in [*_executors]:
        executor.forget_inherited()


in_children(_reset_all)
