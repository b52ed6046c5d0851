"""A model from the Hugging Face Hub, for an operator who allows the network: one pinned commit, data alone."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from service.cli.terminal import CommandError
from service.jobs.registry.folders import KNOWN, LICENCES
from service.settings import Settings

PATTERNS = [*sorted(KNOWN), "*.safetensors", "README.md", *LICENCES]


def looks_like_id(name: str) -> bool:
    """Whether it can be the Hub's id of a model: owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def fetch(settings: Settings, name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a model at the commit that the revision is now, and `name@commit`. Raises CommandError."""
    if not settings.hub_url:
        raise CommandError(
            f"There is no folder {name}. If it is a model of the Hub: this machine fetches none unless ALLO_HUB_URL "
            "says from where, for instance https://huggingface.co."
        )
    try:
        commit = HfApi(endpoint=settings.hub_url).model_info(name, revision=revision).sha
        assert commit is not None
        folder = snapshot_download(
            name,
            revision=commit,
            endpoint=settings.hub_url,
            cache_dir=settings.data_dir / "cache" / "hub",
            allow_patterns=PATTERNS,
        )
    except (HfHubHTTPError, HFValidationError, httpx2.HTTPError, OSError) as error:
        raise CommandError(f"{name} could not be fetched from {settings.hub_url}: {_first_line(error)}") from error
    return Path(folder), f"{name}@{commit}"


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
