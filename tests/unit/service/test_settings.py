"""Settings come from the environment, and go back into one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_the_defaults_need_nothing(tmp_path: Path) -> None:
    settings = Settings.from_environment({"ALLO_DATA_DIR": str(tmp_path), "HOME": "/home"})
    assert settings.database == f"sqlite:///{tmp_path / 'allo.db'}"
    assert settings.store == (tmp_path / "store").as_uri()
    assert len(Settings.model_fields) < 50


def test_a_child_process_reads_the_same_settings() -> None:
    settings = Settings(data_dir=Path("/data"), lease_seconds=1.5, database_url="postgresql://host/db")
    assert Settings.from_environment(settings.to_environment()) == settings


@pytest.mark.parametrize("name", ["ALLO_LEASE_SECOND", "ALLO_X"])
def test_a_misspelt_variable_is_an_error(name: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Settings.from_environment({name: "1"})


def test_the_clients_variables_are_not_ours() -> None:
    Settings.from_environment({"ALLO_API_KEY": "x", "ALLO_URL": "y"})


def test_a_number_out_of_range_is_an_error() -> None:
    with pytest.raises(ValidationError):
        Settings.from_environment({"ALLO_LEASE_SECONDS": "0"})
