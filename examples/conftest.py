"""The fixtures of the tests: `execution_manager` and others."""

pytest_plugins = ["execution_core.testing.plugin"]
