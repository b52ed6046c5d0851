"""docker-compose.yml says what the project has: its extras, locks, folders, settings and profiles."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[3]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
BUILT = [name for name, service in SERVICES.items() if "build" in service]


def dockerfile(service: str) -> list[str]:
    """The lines of its image, as compose hands them on: `$$` is its `$`."""
    lines: str = SERVICES[service]["build"]["dockerfile_inline"]
    return lines.replace("$$", "$").splitlines()


@pytest.mark.parametrize(("service", "extra"), [("api", ""), ("worker", ""), ("gpu-worker", "scale")])
def test_an_image_installs_its_extra_by_the_lock_of_that_extra(service: str, extra: str) -> None:
    (install,) = (line for line in dockerfile(service) if line.startswith("RUN pip install"))
    given = SERVICES[service]["build"].get("args", {"EXTRA": ""})
    shell = ["sh", "-c", install.replace("RUN pip install", "echo")]
    *_, lock, asked = subprocess.run(shell, env=os.environ | given, capture_output=True, text=True).stdout.split()
    assert given == {"EXTRA": extra}
    assert (ROOT / lock).is_file()
    assert asked == (f".[{extra}]" if extra else ".")
    assert extra in {"", *tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]}


@pytest.mark.parametrize("service", BUILT)
def test_whatever_an_image_copies_is_there_and_not_ignored(service: str) -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [name for line in dockerfile(service) if line.startswith("COPY") for name in line.split()[1:-1]]
    assert copied
    for name in copied:
        assert list(ROOT.glob(name)), name
        assert all(any(fnmatch.fnmatch(path.name, kind) for kind in kept) for path in ROOT.glob(name)), name


@pytest.mark.parametrize("service", BUILT)
def test_the_variables_of_a_service_are_settings(service: str) -> None:
    ours = {name for name in SERVICES[service]["environment"] if name.startswith(PREFIX)}
    assert ours
    assert {name.removeprefix(PREFIX).lower() for name in ours} <= set(Settings.model_fields)


def filled(text: str, given: dict[str, str]) -> str:
    """The text as compose fills it in: `${NAME:-otherwise}`, the inner ones first."""
    while (found := re.sub(r"\$\{(\w+):-([^${}]*)\}", lambda name: given.get(name[1]) or name[2], text)) != text:
        text = found
    return text


@pytest.mark.parametrize("service", BUILT)
def test_settings_are_those_of_its_own_parts_or_of_what_is_given(service: str) -> None:
    def settings(given: dict[str, str]) -> Settings:
        environment = {name: filled(value, given) for name, value in SERVICES[service]["environment"].items()}
        return Settings.from_environment(environment)

    own = settings({"POSTGRES_PASSWORD": "other"})
    assert (own.database, own.broker_url) == ("postgresql://allo:other@postgres:5432/allo", "redis://redis:6379/0")
    assert own.store == "file:///data/store"
    elsewhere = {
        "ALLO_DATABASE_URL": "postgresql://db/allo?sslmode=verify-full",
        "ALLO_BROKER_URL": "rediss://:secret@broker:6380/0",
        "ALLO_STORE_URL": "s3://bucket/prefix",
        "ALLO_S3_ENDPOINT": "https://s3.example",
        "ALLO_S3_ACCESS_KEY": "ours",
        "ALLO_S3_SECRET_KEY": "secret",
    }
    given = settings(elsewhere).to_environment()
    assert {name: given[name] for name in elsewhere} == elsewhere


def test_whatever_it_names_of_ours_is_a_setting_or_its_own() -> None:
    named = set(re.findall(r"\bALLO_[A-Z0-9_]+", (ROOT / "docker-compose.yml").read_text()))
    ours = {name.removeprefix(PREFIX).lower() for name in named - {"ALLO_WORKERS", "ALLO_BIND", "ALLO_PORT"}}
    assert ours <= set(Settings.model_fields)


def test_services_wait_for_services_that_tell_how_they_are() -> None:
    waited = {name for service in SERVICES.values() for name in service.get("depends_on", {})}
    assert waited == {"postgres", "redis"}
    assert all("healthcheck" in SERVICES[name] for name in waited)


def test_only_the_worker_with_gpus_asks_for_them_and_only_in_its_profile() -> None:
    asking = [name for name, service in SERVICES.items() if "resources" in service.get("deploy", {})]
    assert (
        asking == [name for name, service in SERVICES.items() if service.get("profiles") == ["gpu"]] == ["gpu-worker"]
    )
    (devices,) = SERVICES["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "replicas" not in SERVICES["gpu-worker"]["deploy"]
    assert SERVICES["gpu-worker"]["command"] == SERVICES["worker"]["command"]
