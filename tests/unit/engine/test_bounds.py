"""Every number that a job may set is bounded on both sides: none can make a stage run for ever or fill a disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from allo_engine.config import CONFIGS


def numbers(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and "enum" not in schema and "const" not in schema:
            yield path, schema
        for key, value in schema.items():
            yield from numbers(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for item in schema:
            yield from numbers(item, path)


@pytest.mark.parametrize("stage", CONFIGS)
def test_every_number_of_a_stage_is_bounded(stage: str) -> None:
    found = dict(numbers(CONFIGS[stage].model_json_schema()))
    assert found
    for path, schema in found.items():
        assert {"minimum", "exclusiveMinimum"} & set(schema), path
        assert {"maximum", "exclusiveMaximum"} & set(schema), path
