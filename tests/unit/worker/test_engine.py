"""The engine's pipes, once it has ended: their numbers are other files' by then."""

from worker.engine import Engine
from worker.starting import start_cold
from worker.workspace import open_workspace


def test_an_engine_that_ended_is_told_nothing_more(tmp_path):
    """A heart goes on beating while what came of an engine is published."""
    with open_workspace(tmp_path, "stage-1", 1, "work") as workspace:
        with Engine(start_cold, ("true",), "stage-1", "sft", workspace, 1, 60, {}) as engine:
            list(engine.lines())
        files = [(tmp_path / f"{number}").open("wb") for number in range(8)]  # they get the numbers of its pipes
        engine.beat()
        engine.stop()
        engine.kill()
        for file in files:
            file.close()
    assert [(tmp_path / f"{number}").read_bytes() for number in range(8)] == [b""] * 8
