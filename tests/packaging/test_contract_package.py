"""The package of the contract, as pytest loads it."""

from importlib import import_module
from pkgutil import iter_modules

from execution_core import testing


def test_contract_modules_show_the_values_of_failing_asserts() -> None:
    names = [module.name for module in iter_modules(testing.__path__)]
    assert "batches" in names
    for name in names:
        module = import_module(f"execution_core.testing.{name}")
        assert type(module.__loader__).__name__ == "AssertionRewritingHook", name
