"""What a contender's own tables say it did: one that loses work must not win."""

from sqlalchemy import NullPool, create_engine, text


def require(url: str, expected: int, query: str) -> None:
    """Fail unless a count over the tables is what it should be."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        found = connection.scalar(text(query))
    if found != expected:
        raise RuntimeError(f"{found} are recorded as complete, not {expected}")
