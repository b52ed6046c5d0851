"""Where the service is and which key opens it: an option, the environment, or what `allo up` wrote down."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from service.cli.terminal import CommandError
from service.settings import Settings

if TYPE_CHECKING:
    from service.client import Client


def add_connection(parser: argparse.ArgumentParser) -> None:
    """The options of every command that speaks to a running service."""
    group = parser.add_argument_group("connection")
    group.add_argument("--url", help="where the service is (default: ALLO_URL, else what `allo up` wrote to DIR/url)")
    group.add_argument(
        "--api-key", help="the key (default: ALLO_API_KEY, else DIR/api_key); command lines are no secret"
    )
    add_data_dir(group)


def add_data_dir(parser: argparse._ActionsContainer) -> None:
    """The option of every command that works on the data folder."""
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="the service's folder (default: ALLO_DATA_DIR, else ./allo-data)"
    )


def local_settings(args: argparse.Namespace) -> Settings:
    """The settings of this machine's service, with the data folder that was asked for."""
    chosen = {"ALLO_DATA_DIR": str(args.data_dir)} if args.data_dir else {}
    settings = Settings.from_environment(os.environ | chosen)
    return settings.model_copy(update={"data_dir": settings.data_dir.absolute()})


def connect(args: argparse.Namespace) -> Client:
    """A client for the service that the options, the environment or the data folder name."""
    from service.client import Client  # here: not every command speaks to a service

    folder = args.data_dir or Path(os.environ.get("ALLO_DATA_DIR", "allo-data"))
    url = args.url or os.environ.get("ALLO_URL") or _noted(folder / "url")
    key = args.api_key or os.environ.get("ALLO_API_KEY") or _noted(folder / "api_key")
    if not url:
        raise CommandError(
            f"No service is known: start one with `allo up`, or give --url. ({folder}/url is not there.)"
        )
    if not key:
        raise CommandError("No API key is known: give --api-key, or set ALLO_API_KEY. `allo keys create` makes one.")
    return Client(_base(url), key)


def _base(url: str) -> str:
    """Where the service is, as people write it: without a scheme, or with the /v1 that OpenAI's clients want."""
    whole = url if "://" in url else f"http://{url}"
    return whole.rstrip("/").removesuffix("/v1")


def _noted(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
