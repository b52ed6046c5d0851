"""As the unit tests of the engine have it: one thread, and a report whose lines can be read."""

from tests.unit.engine.conftest import _one_thread, report, stream

__all__ = ["_one_thread", "report", "stream"]
