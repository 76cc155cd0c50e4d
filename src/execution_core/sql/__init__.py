"""The SQL side: tables, statements and the stores over SQLAlchemy."""
