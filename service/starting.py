"""How a process of the service begins: with its settings, or with a line that says what is wrong with them."""

from __future__ import annotations

import logging
import sys

from pydantic import ValidationError

from service.logs import configure
from service.settings import Settings, refusals

log = logging.getLogger(__name__)


def settings_or_end() -> Settings:
    """The settings of this process; it ends where they are not to be had."""
    try:
        return Settings.from_environment()
    except ValidationError as error:
        configure()  # as it is by default: how it should be is among what is wrong
        log.critical("not_started error=%s", "; ".join(refusals(error)))
        sys.exit(1)
