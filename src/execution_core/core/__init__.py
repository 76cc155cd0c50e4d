"""The pure core: models, the state machine and validation. No I/O, no SQLAlchemy."""
