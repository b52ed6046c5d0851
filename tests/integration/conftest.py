"""What several folders of integration tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.migrating import migrate


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with our tables."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    migrate(f"sqlite:///{path}")
    return path
