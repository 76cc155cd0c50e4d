"""Managers, attempts and tracked functions. They know stores by their protocol alone."""
