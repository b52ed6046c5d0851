"""How a merged file is made, in words: whoever only passes them on need not load what merges (see merging.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DESCRIBED = "merged.json"
"""Stands in a checkpoint's folder in the stead of weights that are made when they are wanted: a list of objects {path,
bytes, sha256} with a recipe's fields."""


@dataclass(frozen=True)
class Recipe:
    """How a merged file is made. `base` and `delta` are the sha256 of two files; without a delta the base is only
    stored in another dtype. `copies` are tensors that the base stores twice: a name → the one that the delta has.
    """

    base: str
    delta: str | None = None
    dtype: str = "F32"
    copies: Mapping[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        return {"base": self.base, "delta": self.delta, "dtype": self.dtype, "copies": dict(self.copies)}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe among an object's fields."""
        return cls(*(fields[name] for name in ("base", "delta", "dtype", "copies")))
