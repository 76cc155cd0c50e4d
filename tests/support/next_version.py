"""A later version of the library, with one more revision."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from execution_core import migrate

REVISION = Path(__file__).with_name("next_revision.py").read_text()


@contextmanager
def next_version(folder: Path, source: str = REVISION) -> Iterator[str]:
    """Let `migrate` know one more revision; yield its name. The other code stays as it is.

    Args:
        folder: for a copy of the migrations.
        source: the revision NEXT, after NEWEST.
    """
    newest = migrate.revisions()[0]
    name = f"execution_core_{int(newest[-4:]) + 1:04}"
    copy = shutil.copytree(migrate.scripts(), folder / "migrations", dirs_exist_ok=True)
    revision = source.replace("NEXT", name).replace("NEWEST", newest)
    (copy / "versions" / f"{name}.py").write_text(revision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "scripts", lambda: copy)
        yield name
