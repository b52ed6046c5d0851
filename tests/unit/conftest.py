"""What holds for every unit test."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("any pace", deadline=None)  # a busy machine may take its time over an example
settings.load_profile("any pace")
