"""Check in the tables of a contender that no work was lost."""

from sqlalchemy import NullPool, create_engine, text


def require(url: str, expected: int, query: str) -> None:
    """Raise RuntimeError unless the query returns the expected count."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        found = connection.scalar(text(query))
    if found != expected:
        raise RuntimeError(f"{found} of {expected} lifecycles are recorded as complete")
