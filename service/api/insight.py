"""What a file is to a model: lengths in tokens, the first lines as they are trained on, and overlap."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from service.api.context import Parts, Reader
from service.jobs.data import insights

router = APIRouter(prefix="/files")

Name = Annotated[str, Query(min_length=1, max_length=255)]


@router.get("/{file_id}/insight")
def read(
    parts: Parts, key: Reader, response: Response, file_id: str, model: Name, validation_file: Name | None = None
) -> dict[str, Any]:
    """Tokens by the model's own tokenizer, a preview by its own template, and what a validation file shares.

    202 with status `running` while it is made: ask again after Retry-After seconds. Of a large file the lengths are
    those of up to 20,000 lines.
    """
    asked = insights.question(parts.database, key.owner, file_id, model, validation_file)
    found = parts.insights.of(asked)
    if found is None:
        response.status_code = 202
        response.headers["retry-after"] = "1"
    named = {"object": "file.insight", "file_id": file_id, "model": model, "validation_file": validation_file}
    return {**named, "status": "running" if found is None else "completed", **(found or {})}
