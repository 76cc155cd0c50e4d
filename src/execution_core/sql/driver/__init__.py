"""Engines, connections, and the execution of compiled statements."""
