"""The tables, their indexes and views, column types and expressions."""
