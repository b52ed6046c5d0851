"""Settings come from the environment, and go back into one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings
from worker.runner import LAST_SECONDS


def test_the_defaults_need_nothing(tmp_path: Path) -> None:
    settings = Settings.from_environment({"ALLO_DATA_DIR": str(tmp_path), "HOME": "/home"})
    assert settings.database == f"sqlite:///{tmp_path / 'allo.db'}"
    assert settings.store == (tmp_path / "store").as_uri()
    assert len(Settings.model_fields) < 66


def test_a_child_process_reads_the_same_settings() -> None:
    settings = Settings(data_dir=Path("/data"), lease_seconds=21.5, database_url="postgresql://host/db")
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


def test_the_page_on_growing_names_every_bound_that_each_process_keeps_by_itself() -> None:
    page = (Path(__file__).parents[3] / "service" / "growing.md").read_text()
    named = re.findall(r"^\| `(ALLO_\w+)` \| ([\d ]+) \|", page, re.MULTILINE)
    fields = Settings.model_fields.items()
    kept = {
        f"ALLO_{name.upper()}": field.default for name, field in fields if "one API process" in str(field.description)
    }
    assert {name: int(default.replace(" ", "")) for name, default in named} == kept


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"LEASE": "10", "SELF_FENCE": "40"}, "ALLO_LEASE_SECONDS (10) must be more than ALLO_SELF_FENCE_SECONDS (40)"),
        ({"HEARTBEAT": "2", "SELF_FENCE": "5"}, "ALLO_SELF_FENCE_SECONDS (5) must be at least three"),
    ],
)
def test_times_that_break_fencing_are_refused_together(values: dict[str, str], wrong: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.from_environment({f"ALLO_{name}_SECONDS": value for name, value in values.items()})
    assert wrong in str(refused.value)


def test_a_dead_host_costs_less_than_twenty_five_seconds_by_default() -> None:
    """From its last sign of life: until the lease ends and the reaper looks, the stage is placed and its engine
    starts, which takes less than three seconds."""
    default = Settings(data_dir=Path("/data"))
    assert default.lease_seconds + 3 * default.dispatch_seconds + 3 <= 25
    assert default.redispatch_seconds <= 10
    leader_gone = default.lease_seconds / 2 + default.heartbeat_seconds
    assert leader_gone <= 15
    assert leader_gone < default.lease_seconds, "whoever stands by leads before the leader's stages are taken"


def test_a_paused_job_frees_its_device_within_fifteen_seconds_by_default() -> None:
    """Whatever its processes do: the next beat tells of it, they are killed once their grace is over, and their last
    checkpoint has its time to get to the store. The rest is for the ends of all of it."""
    default = Settings(data_dir=Path("/data"))
    assert default.heartbeat_seconds + default.grace_seconds + LAST_SECONDS <= 14


AWS = {"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "t", "AWS_SESSION_TOKEN": "s", "AWS_REGION": "eu"}


def test_a_store_in_s3_is_reached_as_awss_own_tools_would_unless_it_is_said_otherwise() -> None:
    url = {"ALLO_STORE_URL": "s3://bucket/prefix"}
    settings = Settings.from_environment(AWS | url)
    assert (settings.s3.access_key, settings.s3.secret_key, settings.s3.region) == ("theirs", "t", "eu")
    ours = {"ALLO_S3_ACCESS_KEY": "ours", "ALLO_S3_SECRET_KEY": "o", "ALLO_S3_ENDPOINT": "http://minio:9000"}
    settings = Settings.from_environment(AWS | url | ours)
    assert (settings.s3.access_key, settings.s3.secret_key, settings.s3.session_token) == ("ours", "o", "")
    assert (settings.s3.endpoint, settings.s3.region) == ("http://minio:9000", "eu")
    assert Settings.from_environment(AWS | settings.to_environment()) == settings
    assert Settings.from_environment(AWS).s3_access_key == "", "no store of ours needs them"
    assert "'t'" not in repr(Settings.from_environment(AWS | url))
