"""Transitions and requests as SQL statements, and rows as models."""
