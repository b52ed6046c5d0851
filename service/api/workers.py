"""The workers that there are: what each has, and what it runs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service.api import render
from service.api.context import Admin, Parts
from service.api.pages import listed

router = APIRouter(prefix="/workers")


@router.get("")
def index(parts: Parts, _key: Admin) -> dict[str, Any]:
    """Every worker that lives, in the order of names."""
    return listed([render.worker(view) for view in parts.workers()])
